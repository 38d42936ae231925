"""nnU-Net's three environment variables, as people set them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_mamba_mis.cli.main import main
from nnunet_mamba_mis.installation import inspect_installation
from nnunet_mamba_mis.nnunet import paths
from nnunet_mamba_mis.utils.errors import UserError
from support.convert_trees import names, write_kvasir


@pytest.mark.parametrize("variable", paths.FOLDERS)
@pytest.mark.parametrize("value", ["~", "~/data"])
def test_quoted_tilde_creates_no_folder(
    variable: str, value: str, tmp_path: Path, raw: Path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_kvasir(tmp_path / "source", 5)
    before = names(tmp_path)
    monkeypatch.setenv(variable, value)

    assert main(["convert", "kvasir-seg", "-i", str(source), "-d", "1", "-np", "1"]) == 1

    # nnU-Net would take the tilde for the name of a folder
    assert f"{variable}={value}" in capfd.readouterr().err
    assert names(tmp_path) == before and names(raw) == []
    with pytest.raises(UserError, match=str(Path.home())):
        paths.folder(variable)
    findings = next(list(found) for title, found in inspect_installation() if "folders" in title)
    assert any(value in finding.text and "mkdir" not in finding.remedy for finding in findings)


def test_tilde_that_the_shell_left_in_an_option_is_the_home_folder(tmp_path: Path, raw: Path, monkeypatch) -> None:
    write_kvasir(tmp_path / "source", 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["convert", "kvasir-seg", "-i", "~/source", "-d", "1", "-np", "1"]) == 0
    assert names(raw) == ["Dataset001_KvasirSEG"]
