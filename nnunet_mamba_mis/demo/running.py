"""Run a command as a step of the demo: print it in full, follow its output, and log it to a file."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import as_typed, ending, find_executable, last_lines
from nnunet_mamba_mis.utils.text import duration, one_line

_POLL_SECONDS = 0.5
_SECONDS_TO_END = 5


@dataclass(frozen=True)
class Step:
    """A command with its description.

    Args:
        name: Name of the step's log file, without a suffix.
        title: Description in a few words.
        command: A console script or "python", and its arguments.
        remark: Comment to print above the command.
        environment: Environment variables for this command only.
        watch: Function that takes each line of output, and returns a line to show or None.
    """

    name: str
    title: str
    command: Sequence[str]
    remark: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    watch: Callable[[str], str | None] | None = None

    def as_typed(self) -> str:
        """Return the command as typed in a shell."""
        return as_typed(self.command, self.environment)


def run_step(step: Step, log: Path, environment: Mapping[str, str]) -> float:
    """Run a step to its end, and return its duration in seconds.

    Args:
        step: The step.
        log: File for all output of the command; its folder must exist.
        environment: Environment variables for the command, in addition to those of this process.

    Raises:
        UserError: The command cannot be started or fails; the message includes the end of its output.
    """
    if step.remark:
        print("\n".join(f"  # {line}" for line in step.remark.splitlines()))
    print(one_line(f"  $ {step.as_typed()}"), flush=True)
    command = [find_executable(step.command[0]), *step.command[1:]]
    # unbuffered, as progress would otherwise appear in blocks
    variables = {**os.environ, **environment, **step.environment, "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with _signals_as_interrupt(), log.open("wb") as output:
        # Output goes to a file and is read from there, as a pipe would stay open while any worker of the command runs.
        # The command has its own session, so that only this process receives Ctrl-C. This process then ends the command
        # with all of its workers.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=variables,
            start_new_session=True,
        )  # fmt: skip
        try:
            _follow(child, step, log, start)
        except BaseException:
            _end(child)
            raise
    if child.returncode != 0:
        _end(child)
        raise UserError(_failure(step, child.returncode, log))
    seconds = time.monotonic() - start
    print(f"  done in {duration(seconds)}", flush=True)
    return seconds


def _follow(child: subprocess.Popen[bytes], step: Step, log: Path, start: float) -> None:
    with log.open("rb") as reader:
        unfinished = b""
        running = True
        while running:
            try:
                child.wait(timeout=_POLL_SECONDS)
                running = False
            except subprocess.TimeoutExpired:
                _show_status(f"  running for {duration(time.monotonic() - start)}")
            # read once more after the command's end, for its last lines
            *lines, unfinished = re.split(rb"[\r\n]+", unfinished + reader.read())
            for line in lines:
                shown = step.watch(line.decode(errors="replace")) if step.watch else None
                if shown is not None:
                    _show_status("")
                    print(f"  {one_line(shown)}", flush=True)
    _show_status("")


def _show_status(text: str) -> None:
    """Replace the current line of a terminal; print nothing elsewhere."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text}", end="", flush=True)


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Treat a closed terminal and `kill` like Ctrl-C, so that the command does not continue alone."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # SIGHUP must stay ignored under nohup; only the main thread can set handlers
    signals = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        signals = []

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = [(number, signal.signal(number, interrupt)) for number in signals]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a command and the workers it started."""
    _send(child, signal.SIGTERM)
    # a second Ctrl-C must not leave the command running
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        child.wait(timeout=_SECONDS_TO_END)
    _send(child, getattr(signal, "SIGKILL", signal.SIGTERM))
    child.wait()


def _send(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            # the child leads the process group, which exists as long as one of its workers runs
            os.killpg(child.pid, number)
        elif child.poll() is None:
            child.terminate()


def _failure(step: Step, status: int, log: Path) -> str:
    lines = [f"step '{step.title}' failed ({ending(status)}): {step.command[0]}. Last lines of its output:"]
    lines += [f"  | {line}" for line in last_lines(log)]
    lines.append(f"The full output is in {log}")
    return "\n".join(lines)
