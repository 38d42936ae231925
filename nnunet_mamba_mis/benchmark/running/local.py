"""Run jobs on this machine, with a limit on the number of simultaneous jobs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from nnunet_mamba_mis.benchmark.running.jobs import Job
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, holder, try_lock
from nnunet_mamba_mis.nnunet.environment import variables_for
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import last_lines
from nnunet_mamba_mis.utils.text import counted, duration, one_line

_POLL_SECONDS = 0.3


def run_jobs(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], device: str) -> int:
    """Run jobs to their end, one per slot at a time, and continue past failures.

    Args:
        jobs: The jobs; finished ones are skipped.
        slots: Environment variables of each slot.
        device: nnU-Net's name of the device.

    Returns:
        Exit status: 0 if all jobs are done, 1 if not, or 128 + the number of the signal that stopped the run.

    Raises:
        UserError: A lock or log cannot be written.
    """
    with _noted_signals() as signals:
        runner = _Runner(jobs, slots, device)
        try:
            while runner.is_busy() and not signals:
                runner.step()
                time.sleep(_POLL_SECONDS)
            if runner.is_busy():
                runner.stop(signals)
        except OSError as error:
            runner.ask_to_end()
            raise UserError(f"{error}. Running jobs save and exit; run the same command again to resume") from error
        print(f"{len(jobs)} jobs: {runner.summary()}", flush=True)
        if signals:
            print("Stopped. Run the same command again to resume", flush=True)
            return 128 + signals[0]
    return 0 if all(runner.outcomes[job] == "done" for job in jobs) else 1


class _Runner:
    def __init__(self, jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], device: str):
        self.waiting = list(jobs)
        self.numbers = {job: number for number, job in enumerate(jobs, start=1)}
        self.slots = list(slots)
        self.suited = variables_for(device, len(slots))
        self.device = device
        self.running: dict[int, tuple[RunningJob, float]] = {}
        self.elsewhere: set[Job] = set()
        self.outcomes: dict[Job, str] = {}

    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> None:
        """Record ended jobs, and start jobs in free slots."""
        self._collect_ended()
        for slot, variables in enumerate(self.slots):
            if slot not in self.running:
                self._fill(slot, variables)
        self._give_up()

    def _give_up(self) -> None:
        """Give up jobs with a dependency that ended without being done."""
        for job in list(self.waiting):
            missing = [str(needed.fold) for needed in job.needs if self.outcomes.get(needed, "done") != "done"]
            if missing:
                self.waiting.remove(job)
                self._end(job, "not started", f"not started: fold {', '.join(missing)} is not done")

    def _fill(self, slot: int, variables: Mapping[str, str]) -> None:
        for job in list(self.waiting):
            if any(self.outcomes.get(needed) != "done" for needed in job.needs):
                continue
            lock = try_lock(job)
            if lock is None:
                if job not in self.elsewhere:
                    self._print(job, f"already running: {holder(job)}")
                    self.elsewhere.add(job)
                continue
            self.waiting.remove(job)
            if job.is_done():
                os.close(lock)
                self._end(job, "done", "already done")
                continue
            verb = "resumed" if job.has_begun() else "started"
            self.running[slot] = RunningJob(job, lock, self.device, {**self.suited, **variables}), time.monotonic()
            place = "".join(f" on GPU {gpu}" for gpu in variables.values())
            self._print(job, f"{verb}{place}, log {job.log}")
            return

    def _collect_ended(self) -> None:
        for slot, (running, began) in list(self.running.items()):
            if not running.has_ended():
                continue
            del self.running[slot]
            outcome = running.finish()
            took = duration(time.monotonic() - began)
            self._end(running.job, outcome.partition(":")[0], f"{outcome} after {took}")
            if outcome.startswith("failed"):
                print("\n".join(f"    | {line}" for line in last_lines(running.job.log)), flush=True)

    def stop(self, signals: list[int]) -> None:
        """Ask the running jobs to save and exit, and wait for them; kill them on a second Ctrl-C."""
        name = signal.Signals(signals[0]).name
        print(
            f"{name}: waiting for {counted(len(self.running), 'job')} to save and exit (Ctrl-C again to kill)",
            flush=True,
        )
        self.ask_to_end()
        while self.running:
            if signals.count(signal.SIGINT) > 1:
                for running, _ in self.running.values():
                    running.stop(signal.SIGKILL)
            self._collect_ended()
            time.sleep(_POLL_SECONDS)

    def ask_to_end(self) -> None:
        for running, _ in self.running.values():
            running.stop()

    def summary(self) -> str:
        outcomes = list(self.outcomes.values())
        counts = {outcome: outcomes.count(outcome) for outcome in ("done", "failed", "stopped", "not started")}
        counts["not started"] += len(self.waiting)
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)

    def _end(self, job: Job, outcome: str, text: str) -> None:
        self.outcomes[job] = outcome
        self._print(job, text)

    def _print(self, job: Job, text: str) -> None:
        digits = len(str(len(self.numbers)))
        print(one_line(f"[{self.numbers[job]:{digits}d}/{len(self.numbers)}] {job}: {text}"), flush=True)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Collect in a list the termination signals that this process receives; ignored ones (`nohup`) stay ignored."""
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)

    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = [(number, signal.signal(number, note)) for number in numbers]
    try:
        yield noted
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
