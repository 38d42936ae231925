"""Output that the terminal cannot take neither stops the work nor causes a traceback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.convert_trees import command, names, write_kvasir

TARGET = "Dataset001_KvasirSEG"


def shell(arguments: list[str], redirection: str, **variables: str) -> tuple[int, str]:
    """Run a command with a shell redirection, and return its exit status and stderr."""
    script = f"set -o pipefail; {shlex.join(arguments)} {redirection}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ | variables)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("redirection", "variables", "status"),
    [
        (">&-", {}, 0),
        ("<&- >&- 2>&-", {}, 0),
        ("2>&-", {}, 0),
        (">/dev/full", {}, 1),
        (">/dev/full", {"PYTHONUNBUFFERED": "1"}, 1),
        ("2>/dev/full", {}, 0),
        ("| true", {}, 141),
        ("", {"PYTHONIOENCODING": "ascii"}, 0),
    ],
)
def test_conversion_survives_failing_output(
    redirection: str, variables: dict[str, str], status: int, tmp_path: Path, monkeypatch
) -> None:
    raw = tmp_path / "nnUNet_räw"
    monkeypatch.setenv("nnUNet_raw", str(raw))
    arguments = command("kvasir-seg", "-i", write_kvasir(tmp_path / "source", 5), "-d", 1, "-np", 1)

    actual, stderr = shell(arguments, redirection, **{"PYTHONUNBUFFERED": "", **variables})

    assert actual == status and "Traceback" not in stderr and "Exception ignored" not in stderr
    assert names(raw) == [TARGET] and len(names(raw / TARGET / "labelsTr")) == 5


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--version"], 0), (["convert", "--list"], 0), (["nonsense"], 2), (["convert", "etis", "-i", "x", "-d", "1"], 1)],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_keeps_its_status_with_closed_streams(arguments: list[str], status: int) -> None:
    assert shell([sys.executable, "-m", "nnunet_mamba_mis.cli", *arguments], ">&- 2>&-") == (status, "")


def test_help_on_a_full_disk_is_an_error() -> None:
    status, stderr = shell([sys.executable, "-m", "nnunet_mamba_mis.cli", "--help"], ">/dev/full")
    assert status == 1 and "No space left on device" in stderr and "Traceback" not in stderr
