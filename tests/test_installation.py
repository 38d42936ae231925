"""Findings of `mamba_mis doctor`; end_to_end/test_install.py tests it in whole environments."""

from __future__ import annotations

import importlib.metadata

import pytest

from nnunet_mamba_mis.installation import NOTE, OK, WRONG, Finding, inspect_installation


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
