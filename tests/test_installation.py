"""What `mamba_mis doctor` finds; with whole environments in end_to_end/test_install.py."""

from __future__ import annotations

import importlib.metadata

import pytest

from nnunet_mamba_mis.installation import NOTE, OK, WRONG, Finding, inspect_installation


def installed(monkeypatch, **versions: str | None) -> dict[str, Finding]:
    """Findings about packages, by name, where some have other versions, or None."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        chosen = versions[name] if name in versions else real(name)
        if chosen is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return chosen

    monkeypatch.setattr(importlib.metadata, "version", version)
    return {finding.text.split()[0]: finding for finding in dict(inspect_installation())["Installed"]}


def test_packages_with_a_lowest_version_are_compared_with_it(monkeypatch):
    found = installed(monkeypatch)
    assert {"nnunetv2", "torch", "dynamic-network-architectures", "batchgenerators", "SimpleITK"} <= found.keys()
    assert all(finding.status in (OK, NOTE) for finding in found.values())


@pytest.mark.parametrize(("version", "status"), [("2.5.1", WRONG), ("2.6.0+cpu", OK), ("2.10.0.dev2026", OK)])
def test_versions_are_compared_as_versions(monkeypatch, version, status):
    assert installed(monkeypatch, torch=version)["torch"].status == status


def test_what_is_missing_comes_with_the_command_that_installs_it(monkeypatch):
    finding = installed(monkeypatch, SimpleITK=None)["SimpleITK"]
    assert finding.status == WRONG and finding.remedy.startswith("pip install 'SimpleITK>=")


def test_accelerators_are_optional(monkeypatch):
    found = installed(monkeypatch, **{"mamba-ssm": None, "causal-conv1d": "1.5"})
    assert (found["mamba-ssm"].status, found["causal-conv1d"].status) == (NOTE, OK)
