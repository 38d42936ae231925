"""Submit jobs to Slurm, through submitit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nnunet_mamba_mis.benchmark.running.jobs import Job
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, holder, note, try_lock
from nnunet_mamba_mis.nnunet.environment import variables_for
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.subprocesses import last_lines
from nnunet_mamba_mis.utils.text import one_line

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

# of a job, in its folder: its number in the queue
_ID = "benchmark.slurm"
# submitit's files, in nnUNet_results
_FOLDER = "benchmark_slurm"
# a step on a GPU takes less than a second; the rest is for a slow file system
SECONDS_TO_SAVE = 120
_MANY = 10_000


class Task:
    """A job as submitit runs it on a node.

    Args:
        job: What to run.
        device: nnU-Net's name of it.
    """

    def __init__(self, job: Job, device: str):
        self.job = job
        self.device = device
        self.running: RunningJob | None = None

    def __call__(self) -> str:
        """Run the job to its end.

        Raises:
            RuntimeError: It is not done; the text has the end of its log.
        """
        if missing := [str(needed.fold) for needed in self.job.needs if not needed.is_done()]:
            problem = f"failed: fold {', '.join(missing)} is not done"
            note(self.job, problem)
            raise RuntimeError(f"{self.job}: {problem}")
        lock = try_lock(self.job)
        if lock is None:
            raise RuntimeError(f"{self.job} runs already: {holder(self.job)}")
        if self.job.is_done():
            os.close(lock)
            return "done"
        self.running = RunningJob(self.job, lock, self.device, variables_for(self.device, 1))
        outcome = self.running.wait()
        if outcome != "done":
            raise RuntimeError("\n".join([f"{self.job}: {outcome}", *last_lines(self.job.log)]))
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """Stop the job before the time limit or a preemption; submitit then puts what is returned into the queue."""
        from submitit.core.utils import DelayedSubmission

        if self.running is not None:
            self.running.stop()
            self.running.wait()
        return DelayedSubmission(Task(self.job, self.device))


def submit(jobs: Sequence[Job], device: str, parameters: dict[str, Any]) -> None:
    """Submit the jobs that are neither done nor in the queue.

    Trainings are an array; each model's predictions are one that waits for its trainings.

    Args:
        jobs: The grid.
        device: nnU-Net's name of it.
        parameters: Submitit's, of each job.

    Raises:
        UserError: Submitit or Slurm is missing, or Slurm refuses.
    """
    try:
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise UserError("--slurm needs submitit: pip install 'nnunet-mamba-mis[slurm]'") from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--slurm: there are no commands sbatch and srun here; run this where jobs are submitted")
    queued = queued_jobs(jobs)
    new = [job for job in jobs if job not in queued and not job.is_done()]
    print(f"{len(jobs)} jobs: {sum(job.is_done() for job in jobs)} done, {len(queued)} in the queue, {len(new)} new")
    if not new:
        return
    try:
        # the trainings, which need nothing, come first
        for _, together in groupby(new, key=lambda job: job.needs):
            _submit_array(list(together), device, parameters)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"Slurm did not take the jobs: {error}") from error
    for job in queued:
        _wait_for(job, set(new))


def _submit_array(jobs: Sequence[Job], device: str, parameters: dict[str, Any]) -> None:
    """Submit jobs that need the same ones."""
    import submitit

    executor = submitit.SlurmExecutor(jobs[0].candidate.results / _FOLDER, max_num_timeout=_MANY)
    if dependency := _dependency(jobs[0]):
        further = {**parameters["additional_parameters"], "dependency": dependency}
        parameters = parameters | {"additional_parameters": further}
    executor.update_parameters(**parameters)
    for job, entry in zip(jobs, executor.submit_array([Task(job, device) for job in jobs]), strict=True):
        with atomic_write(job.folder / _ID) as file:
            file.write(entry.job_id.encode())
        print(one_line(f"{entry.job_id}: {job}, log {job.log}"))


def _dependency(job: Job) -> str:
    """Return what a job waits for, in sbatch's words: the end of others, good or bad, so that it can name failures."""
    awaited = [number for needed in job.needs if not needed.is_done() and (number := _id(needed))]
    return "afterany:" + ":".join(awaited) if awaited else ""


def _wait_for(job: Job, submitted: set[Job]) -> None:
    """Let a job in the queue wait for those that were submitted again; one that runs already names failures."""
    if submitted.intersection(job.needs):
        command = ["scontrol", "update", f"JobId={_id(job)}", f"Dependency={_dependency(job)}"]
        subprocess.run(command, capture_output=True)


def _id(job: Job) -> str:
    """Number of the job in the queue; empty if it has none."""
    with suppress(OSError, ValueError):
        return (job.folder / _ID).read_text(encoding="utf-8").strip()
    return ""


def queued_jobs(jobs: Sequence[Job]) -> set[Job]:
    """Jobs that wait in Slurm's queue or run there; none where there is no Slurm."""
    numbers = {job: number for job in jobs if (number := _id(job))}
    if not numbers or shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise UserError(f"squeue does not answer: {answer.stderr.strip()}")
    return {job for job, number in numbers.items() if number in answer.stdout.split()}
