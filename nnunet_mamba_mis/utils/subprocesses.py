"""Commands of this Python's environment: where they are, how to type them, how they ended."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import one_line

_LINES_OF_LOG = 15
_LONGEST_LINE = 200


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scripts_folders() -> list[str]:
    """Return the folders where this Python's console scripts may lie, whether or not its environment is activated."""
    user_scheme = sysconfig.get_preferred_scheme("user")
    folders = [Path(sys.executable).parent, sysconfig.get_path("scripts"), sysconfig.get_path("scripts", user_scheme)]
    return list(dict.fromkeys(map(str, folders)))


def find_executable(name: str) -> str:
    """Return the path of a console script of this Python's environment; for "python", the path of this interpreter.

    Raises:
        UserError: The script is not installed.
    """
    if name == "python":
        return sys.executable
    folders = scripts_folders()
    path = shutil.which(name, path=os.pathsep.join(folders)) or shutil.which(name)
    if path is None:
        raise UserError(
            f"the command {name} is neither in {' nor in '.join(folders)} nor on PATH: install nnU-Net into this "
            "environment (pip install nnunetv2)"
        )
    return path


def as_typed(command: Sequence[str], variables: Mapping[str, str]) -> str:
    """Return a command as typed in a shell, after environment variables."""
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " ".join([*words, shlex.join(command)])


def ending(status: int) -> str:
    """Describe how a process ended, by its exit status as in `subprocess`: negative for a signal."""
    if status == -getattr(signal, "SIGKILL", 0):
        return f"signal {-status}, perhaps out of memory"
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def last_lines(log: Path, number: int = _LINES_OF_LOG) -> list[str]:
    """Return the last non-empty lines of a log; a progress bar counts as one line."""
    text = log.read_bytes().decode(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return [one_line(line)[:_LONGEST_LINE] for line in lines if line][-number:]
