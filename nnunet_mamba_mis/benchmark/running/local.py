"""Run jobs on this machine, a few at a time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from nnunet_mamba_mis.benchmark.running.jobs import Job
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, holder, try_lock
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import count_cores, last_lines
from nnunet_mamba_mis.utils.text import duration

_POLL_SECONDS = 0.3


def variables_for(device: str, jobs_at_once: int) -> dict[str, str]:
    """Variables that suit nnU-Net to the device, as far as the user has not set them.

    Args:
        device: nnU-Net's name of it.
        jobs_at_once: how many share the machine.
    """
    if device != "cpu":
        return {}
    # Training takes all cores, so that workers would only be in its way: augment in the process that trains.
    suited = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": str(max(1, min(8, count_cores() // jobs_at_once)))}
    if jobs_at_once > 1:
        # nnU-Net takes a thread for each core in every job: they must not spin while they wait for each other
        suited["OMP_WAIT_POLICY"] = "PASSIVE"
    return {name: value for name, value in suited.items() if name not in os.environ}


def run_jobs(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], device: str) -> int:
    """Run jobs to their end, as many at a time as there are slots; those that fail do not keep the others.

    Args:
        jobs: what to run; finished ones are passed over.
        slots: for each place to run a job, the environment variables that choose it.
        device: nnU-Net's name of it.

    Returns:
        Exit status: 0, 1 if a job is not done, 128 and the number of the signal that stopped it.

    Raises:
        UserError: a lock or log cannot be written.
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
            raise UserError(f"{error}; what runs is told to save and end, and the same command goes on") from error
        print(f"{len(jobs)} jobs: {runner.summary()}", flush=True)
        if signals:
            print("Stopped; the same command goes on", flush=True)
            return 128 + signals[0]
    return 0 if runner.outcomes.count("done") == len(jobs) else 1


class _Runner:
    def __init__(self, jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], device: str):
        self.waiting = list(jobs)
        self.numbers = {job: number for number, job in enumerate(jobs, start=1)}
        self.slots = list(slots)
        self.suited = variables_for(device, len(slots))
        self.device = device
        self.running: dict[int, tuple[RunningJob, float]] = {}
        self.elsewhere: set[Job] = set()
        self.done: set[Job] = set()
        self.outcomes: list[str] = []

    def is_busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> None:
        """Note what has ended, and fill the free slots."""
        for slot, (running, began) in list(self.running.items()):
            if running.has_ended():
                self._collect(slot, running, time.monotonic() - began)
        for slot, variables in enumerate(self.slots):
            if slot not in self.running:
                self._fill(slot, variables)
        self._give_up()

    def _give_up(self) -> None:
        """End jobs that need one which has failed."""
        to_come = {*self.waiting, *(running.job for running, _ in self.running.values())}
        for job in list(self.waiting):
            lacking = [str(needed.fold) for needed in job.needs if needed not in self.done | to_come]
            if lacking:
                self.waiting.remove(job)
                self._end(job, "not begun", f"not begun: fold {', '.join(lacking)} is not done")

    def _fill(self, slot: int, variables: Mapping[str, str]) -> None:
        for job in list(self.waiting):
            if not self.done.issuperset(job.needs):
                continue
            lock = try_lock(job)
            if lock is None:
                if job not in self.elsewhere:
                    self._say(job, f"runs already: {holder(job)}")
                    self.elsewhere.add(job)
                continue
            self.waiting.remove(job)
            if job.is_done():
                os.close(lock)
                self._end(job, "done", "done before")
                continue
            goes_on = "continued" if job.has_begun() else "started"
            self.running[slot] = RunningJob(job, lock, self.device, {**self.suited, **variables}), time.monotonic()
            place = "".join(f" on GPU {gpu}" for gpu in variables.values())
            self._say(job, f"{goes_on}{place}, log {job.log}")
            return

    def _collect(self, slot: int, running: RunningJob, seconds: float) -> None:
        del self.running[slot]
        outcome = running.finish()
        self._end(running.job, outcome.partition(":")[0], f"{outcome} after {duration(seconds)}")
        if outcome.startswith("failed"):
            print("\n".join(f"    | {line}" for line in last_lines(running.job.log)), flush=True)

    def stop(self, signals: list[int]) -> None:
        """Pass the signal on and wait; another Ctrl-C ends them at once."""
        name = signal.Signals(signals[0]).name
        print(f"{name}: waiting for {len(self.running)} to save where they are (again Ctrl-C: do not)", flush=True)
        self.ask_to_end()
        while self.running:
            if signals.count(signal.SIGINT) > 1:
                for running, _ in self.running.values():
                    running.kill()
            for slot, (running, began) in list(self.running.items()):
                if running.has_ended():
                    self._collect(slot, running, time.monotonic() - began)
            time.sleep(_POLL_SECONDS)

    def ask_to_end(self) -> None:
        for running, _ in self.running.values():
            running.stop()

    def summary(self) -> str:
        counts = {outcome: self.outcomes.count(outcome) for outcome in ("done", "failed", "stopped", "not begun")}
        counts["not begun"] += len(self.waiting)
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)

    def _end(self, job: Job, outcome: str, text: str) -> None:
        self.outcomes.append(outcome)
        if outcome == "done":
            self.done.add(job)
        self._say(job, text)

    def _say(self, job: Job, text: str) -> None:
        digits = len(str(len(self.numbers)))
        print(f"[{self.numbers[job]:{digits}d}/{len(self.numbers)}] {job}: {text}", flush=True)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Signals that ask this process to end, in a list that grows; ignored ones (`nohup`) stay ignored."""
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
