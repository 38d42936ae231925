"""Submit jobs to Slurm with submitit."""

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

# file in a job's folder; its content is the job's number in the queue
_ID = "benchmark.slurm"
# folder in nnUNet_results for submitit's files
_FOLDER = "benchmark_slurm"
# a training step on a GPU takes less than a second; the rest allows for a slow file system
SECONDS_TO_SAVE = 120
_MANY = 10_000


class Task:
    """A callable with which submitit runs a job on a node.

    Args:
        job: The job.
        device: nnU-Net's name of the device.
    """

    def __init__(self, job: Job, device: str):
        self.job = job
        self.device = device
        self.running: RunningJob | None = None

    def __call__(self) -> str:
        """Run the job to its end.

        Raises:
            RuntimeError: The job cannot start, failed or stopped; the message gives the reason and, if the job ran, the
                end of its log.
        """
        if missing := [str(needed.fold) for needed in self.job.needs if not needed.is_done()]:
            problem = f"failed: fold {', '.join(missing)} is not done"
            note(self.job, problem)
            raise RuntimeError(f"{self.job}: {problem}")
        lock = try_lock(self.job)
        if lock is None:
            raise RuntimeError(f"{self.job} is already running: {holder(self.job)}")
        if self.job.is_done():
            os.close(lock)
            return "done"
        self.running = RunningJob(self.job, lock, self.device, variables_for(self.device, 1))
        outcome = self.running.wait()
        if outcome != "done":
            raise RuntimeError("\n".join([f"{self.job}: {outcome}", *last_lines(self.job.log)]))
        return outcome

    def checkpoint(self) -> DelayedSubmission:
        """Stop the job before the time limit or a preemption, and return its resubmission for submitit."""
        from submitit.core.utils import DelayedSubmission

        if self.running is not None:
            self.running.stop()
            self.running.wait()
        return DelayedSubmission(Task(self.job, self.device))


def submit(jobs: Sequence[Job], device: str, parameters: dict[str, Any]) -> None:
    """Submit the jobs that are neither done nor queued.

    Training jobs form one array. The predictions of each model form a further array, which waits for that model's
    training jobs.

    Args:
        jobs: The grid.
        device: nnU-Net's name of the device.
        parameters: submitit's parameters of each job.

    Raises:
        UserError: submitit or Slurm is missing, or Slurm rejects the jobs.
    """
    try:
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise UserError("--slurm needs submitit: pip install 'nnunet-mamba-mis[slurm]'") from None
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--slurm: the commands sbatch and srun were not found; run this on a login node of the cluster")
    queued = queued_jobs(jobs)
    new = [job for job in jobs if job not in queued and not job.is_done()]
    print(f"{len(jobs)} jobs: {sum(job.is_done() for job in jobs)} done, {len(queued)} in the queue, {len(new)} new")
    if not new:
        return
    try:
        # training jobs come first, as they have no dependencies
        for _, together in groupby(new, key=lambda job: job.needs):
            _submit_array(list(together), device, parameters)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"Slurm rejected the jobs: {error}") from error
    for job in queued:
        _wait_for(job, set(new))


def _submit_array(jobs: Sequence[Job], device: str, parameters: dict[str, Any]) -> None:
    """Submit jobs with the same dependencies."""
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
    """Return a job's dependency in sbatch's syntax.

    The job starts when all needed jobs have ended, even if some failed, so that it reports their failure.
    """
    awaited = [number for needed in job.needs if not needed.is_done() and (number := _id(needed))]
    return "afterany:" + ":".join(awaited) if awaited else ""


def _wait_for(job: Job, submitted: set[Job]) -> None:
    """Make a queued job wait for dependencies that were resubmitted.

    If the job runs already, Slurm rejects the update. This needs no message: a job checks at its start whether all
    folds are done, and its log names those that are not.
    """
    if submitted.intersection(job.needs):
        command = ["scontrol", "update", f"JobId={_id(job)}", f"Dependency={_dependency(job)}"]
        subprocess.run(command, capture_output=True)


def _id(job: Job) -> str:
    """Return the job's number in the queue, or "" if it has none."""
    with suppress(OSError, ValueError):
        return (job.folder / _ID).read_text(encoding="utf-8").strip()
    return ""


def queued_jobs(jobs: Sequence[Job]) -> set[Job]:
    """Return the jobs that wait or run in Slurm's queue; none without Slurm."""
    numbers = {job: number for job in jobs if (number := _id(job))}
    if not numbers or shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise UserError(f"squeue failed: {answer.stderr.strip()}")
    return {job for job, number in numbers.items() if number in answer.stdout.split()}
