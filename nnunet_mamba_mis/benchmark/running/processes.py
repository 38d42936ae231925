"""Run a job in processes, at most once at a time across the machines that share the results, and leave no orphans."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import lock_descriptor, unlock_descriptor

from nnunet_mamba_mis.benchmark.running.jobs import Job, job_as_typed
from nnunet_mamba_mis.utils.subprocesses import ending, find_executable

LOCK = "benchmark.lock"
# start of the lines that this module adds to a job's log
NOTE = "# mamba_mis benchmark:"
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
# Windows lacks some of these signals
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_HOLDER = re.compile(r"([\w.-]{1,255}) ([1-9][0-9]{0,9})\n")


def try_lock(job: Job) -> int | None:
    """Lock a job for this process and the processes that it starts for the job.

    The lock is on an open file that the job's processes inherit, so it lasts exactly until the last of them ends, even
    if the process that acquired it is killed.

    Returns:
        A file descriptor to close afterwards, or None if the job is already running.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(job.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    if not lock_descriptor(lock, blocking=False):
        _end_orphans(job.folder)
        os.close(lock)
        return None
    return lock


def is_running(folder: Path) -> bool:
    """Return whether a process holds the lock of this folder's job; False if the lock cannot be tested."""
    # the test fails if the lock is missing, is a folder or belongs to another user, or if the system lacks such locks
    with suppress(OSError):
        file = folder / LOCK
        lock = os.open(file, os.O_RDWR if os.access(file, os.W_OK) else os.O_RDONLY)
        try:
            return not lock_descriptor(lock, blocking=False)  # closing releases it
        finally:
            os.close(lock)
    return False


class _Holder(NamedTuple):
    """Host and process that work on a job."""

    host: str
    pid: int

    @classmethod
    def read(cls, folder: Path) -> _Holder | None:
        """Return the holder that the lock file names; None if it does not (yet) name one."""
        with suppress(OSError):
            if match := _HOLDER.fullmatch((folder / LOCK).read_text(errors="replace")):
                return cls(match[1], int(match[2]))
        return None


def holder(job: Job) -> str:
    """Return a description of the process that works on a job."""
    process = _Holder.read(job.folder)
    return f"process {process.pid} on {process.host}" if process else "another process"


def _end_orphans(folder: Path) -> None:
    """Kill workers on this machine that outlived their job's command, as they would hold the lock forever."""
    process = _Holder.read(folder)
    # the system cannot reuse the process id for another group while a member of the old group exists and holds the lock
    if process and process.host == socket.gethostname() and not _is_alive(process.pid):
        _signal_group(process.pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    """Return whether a process runs; zombies do not."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError, OverflowError):
        os.killpg(pid, number)


class RunningJob:
    """A job's commands, run one after another, each in its own process group, with all output in the job's log.

    Args:
        job: The job.
        lock: Lock from `try_lock`; closed when the last command has ended.
        device: nnU-Net's name of the device.
        variables: Environment variables for the commands, in addition to the job's own.
    """

    def __init__(self, job: Job, lock: int, device: str, variables: Mapping[str, str]):
        self.job = job
        self.lock = lock
        self.was_stopped = False
        job.prepare()
        note(job, f"on {socket.gethostname()}: {job_as_typed(job, device, variables)}")
        self.variables = {**job.candidate.variables, **variables}
        self.to_come = [[find_executable(name), *arguments] for name, *arguments in job.commands(device)]
        self._start_next()

    def _start_next(self) -> None:
        os.ftruncate(self.lock, 0)
        with self.job.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.to_come.pop(0), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **self.variables, "PYTHONUNBUFFERED": "1"}, pass_fds=[self.lock],
                start_new_session=True, preexec_fn=_prepare(self.lock, os.getpid()),
            )  # fmt: skip

    def has_ended(self) -> bool:
        """Return whether all commands have ended; start the next command if the current one has succeeded."""
        status = self._status()
        if status == 0 and self.to_come and not self.was_stopped:
            _signal_group(self.process.pid, signal.SIGKILL)  # workers that the command left behind
            self.process.wait()
            self._start_next()
            return False
        return status is not None

    def _status(self) -> int | None:
        """Return the exit status of the current command, or None while it runs."""
        if not hasattr(os, "waitid"):  # macOS
            return self.process.poll()
        # poll() takes a lock, and a signal handler may call this method while poll() holds the lock
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def wait(self) -> str:
        """Wait for the commands to end, and return the outcome from `finish`."""
        while not self.has_ended():
            time.sleep(_POLL_SECONDS)
        return self.finish()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal.

        After SIGTERM, this package's trainers save their state, and nnU-Net's own trainers exit immediately. SIGKILL
        kills all of the command's processes.
        """
        self.was_stopped = True
        _signal_group(self.process.pid, number)

    def finish(self) -> str:
        """Clean up after the last command.

        Returns:
            The outcome: "done", "stopped" or "failed: REASON".
        """
        _signal_group(self.process.pid, signal.SIGKILL)  # workers that the command left behind
        outcome = self._outcome(self.process.wait())
        note(self.job, outcome)
        unlock_descriptor(self.lock)
        os.close(self.lock)
        return outcome

    def _outcome(self, status: int) -> str:
        if status == 0 and self.job.is_done():
            return "done"
        if self.was_stopped or status in [code for number in _STOP_SIGNALS for code in (-number, 128 + number)]:
            return "stopped"
        if status == 0:
            return f"failed: it ended without writing {self.job.summary.relative_to(self.job.folder)}"
        return f"failed: {ending(status)}"


def note(job: Job, text: str) -> None:
    """Append a timestamped line to a job's log."""
    with job.log.open("ab") as log:
        log.write(f"{NOTE} {time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())


def _prepare(lock: int, parent: int) -> Callable[[], None]:
    """Return the function that the new process runs before it becomes the command."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    who = socket.gethostname()

    def prepare() -> None:
        os.pwrite(lock, f"{who} {os.getpid()}\n".encode(), 0)
        # a cluster sends these signals to all processes of a job, and they would kill a program without handlers
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(128 + signal.SIGTERM)

    return prepare
