"""Findings of `mamba_mis doctor`; end_to_end/test_install.py tests the command in new virtual environments."""

from __future__ import annotations

import importlib.metadata

import pytest

from nnunet_mamba_mis.installation import NOTE, OK, WRONG, Finding, inspect_installation
from nnunet_mamba_mis.ops import native_library as native
from support.scans import INSTRUCTION_SETS, needs_native


def installed(monkeypatch, **versions: str | None) -> dict[str, Finding]:
    """Return findings about packages by name, with some versions replaced; None stands for a missing package."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        chosen = versions[name] if name in versions else real(name)
        if chosen is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return chosen

    monkeypatch.setattr(importlib.metadata, "version", version)
    return {finding.text.split()[0]: finding for finding in dict(inspect_installation())["Installed"]}


def test_packages_are_compared_with_their_lowest_version(monkeypatch):
    findings = installed(monkeypatch)
    assert {"nnunetv2", "torch", "dynamic-network-architectures", "batchgenerators", "SimpleITK"} <= findings.keys()
    assert all(finding.status in (OK, NOTE) for finding in findings.values())


@pytest.mark.parametrize(("version", "status"), [("2.5.1", WRONG), ("2.6.0+cpu", OK), ("2.10.0.dev2026", OK)])
def test_versions_are_compared_as_versions(monkeypatch, version, status):
    assert installed(monkeypatch, torch=version)["torch"].status == status


def test_missing_package_comes_with_its_install_command(monkeypatch):
    finding = installed(monkeypatch, SimpleITK=None)["SimpleITK"]
    assert finding.status == WRONG and finding.remedy.startswith("pip install 'SimpleITK>=")


def test_accelerators_are_optional(monkeypatch):
    findings = installed(monkeypatch, **{"mamba-ssm": None, "causal-conv1d": "1.5"})
    assert (findings["mamba-ssm"].status, findings["causal-conv1d"].status) == (NOTE, OK)


class Distribution:
    """A fake of `importlib.metadata.Distribution` that reads the given metadata files."""

    def __init__(self, **files: str) -> None:
        self.read_text = lambda name: files.get(name.partition(".")[0])


def native_code(monkeypatch, **files: str) -> list[Finding]:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution(**files))
    return list(dict(inspect_installation())["Native code for CPUs"])


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"WHEEL": "Root-Is-Purelib: false\nTag: py3-none-win_amd64\n"}, "wheel for win_amd64"),
        ({"WHEEL": "Tag: py3-none-manylinux2014_x86_64\n"}, "wheel for manylinux2014_x86_64"),
        ({"WHEEL": "Tag: py3-none-linux_x86_64\n"}, "compiled at installation for linux_x86_64"),
        (
            {"WHEEL": "Tag: py3-none-any\n", "direct_url": '{"dir_info": {"editable": true}, "url": "file:///a/b"}'},
            "editable installation of /a/b, compiled here",
        ),
    ],
)
def test_kind_of_installation_is_named(monkeypatch, files, kind):
    assert native_code(monkeypatch, **files)[0].text == kind


@needs_native
def test_instruction_set_and_threads_are_named(threads):
    threads(2)
    text = "\n".join(finding.text for finding in dict(inspect_installation())["Native code for CPUs"])
    assert f"{INSTRUCTION_SETS[0]} code on 2 threads" in text
    assert f"{INSTRUCTION_SETS[0]} is the fastest instruction set of this machine" in text


@needs_native
def test_faster_instruction_set_that_has_no_code_is_named(monkeypatch):
    monkeypatch.setattr(native, "machine_instruction_sets", lambda: ["avx1024", *INSTRUCTION_SETS])
    (note,) = (f for f in dict(inspect_installation())["Native code for CPUs"] if f.status == NOTE)
    assert "this machine has avx1024" in note.text and note.remedy.startswith("reinstall")


@needs_native
def test_variable_that_chooses_a_slower_instruction_set_is_named(monkeypatch):
    monkeypatch.setattr(native, "instruction_set", lambda: "baseline")
    monkeypatch.setattr(native, "instruction_sets", lambda: ["avx2", "baseline"])
    monkeypatch.setattr(native, "machine_instruction_sets", lambda: ["avx2", "baseline"])
    (note,) = (f for f in dict(inspect_installation())["Native code for CPUs"] if f.status == NOTE)
    assert note == Finding(NOTE, "avx2 code is faster on this machine", "unset MAMBA_MIS_INSTRUCTION_SET")
