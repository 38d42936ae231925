"""The array job for all folds, with stand-ins for a cluster's commands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from support.paths import PROGRAMS, REPOSITORY
from support.waiting import wait_until

SCRIPT = REPOSITORY / "scripts" / "slurm_train_folds.sh"

# stand-ins for nnU-Net's command, which ends as the test chooses, and for Slurm's `scontrol`
CLUSTER = PROGRAMS / "cluster"


@pytest.fixture
def slurm():
    """Return a function that starts the script as Slurm does, and returns the process."""
    tasks = []

    def submit(*arguments: str, **variables: str) -> subprocess.Popen:
        task = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "PATH": f"{CLUSTER}:{os.environ['PATH']}"}
        environment = os.environ | task | variables
        command = ["bash", SCRIPT, *arguments]
        tasks.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        return tasks[-1]

    yield submit
    for task in tasks:
        with suppress(ProcessLookupError):
            os.killpg(task.pid, signal.SIGKILL)


@pytest.mark.feature("Processes", "Slurm array with requeue")
@pytest.mark.parametrize(
    ("arguments", "variables", "reached", "status"),
    [
        ([], {}, "command got TERM", 143),
        (["-num_gpus", "2"], {}, "rank got TERM", 1),
        (["-num_gpus=2"], {}, "rank got TERM", 1),
        (["-num_gpus", "2"], {"NO_RANKS": "1"}, "command got TERM", 143),
    ],
    ids=["one process", "several", "several, with =", "several, not yet started"],
)
def test_array_task_that_runs_out_of_time_is_requeued(slurm, arguments, variables, reached, status):
    task = slurm("101", "2d", "nnUNetTrainerMambaMIS", *arguments, **variables)
    first = task.stdout.readline()
    assert first == " ".join(["train 101 2d 3 -tr nnUNetTrainerMambaMIS", *arguments, "--c\n"])
    caught = 1 << (signal.SIGTERM - 1)
    wait_until(
        lambda: int(re.search(r"SigCgt:\s(\w+)", Path(f"/proc/{task.pid}/status").read_text())[1], 16) & caught, 20
    )
    task.send_signal(signal.SIGTERM)  # like --signal=B:TERM@300: only to the script
    output, _ = task.communicate(timeout=20)
    assert output.splitlines() == [reached, "scontrol requeue 7"]
    assert task.returncode == status


@pytest.mark.feature("Processes", "Slurm array with requeue")
@pytest.mark.parametrize("ends", ["0", "1"], ids=["done", "failed"])
def test_array_task_that_ends_by_itself_is_not_requeued(slurm, ends):
    task = slurm("101", "2d", "nnUNetTrainerMambaMIS", TRAINING_ENDS=ends)
    output, _ = task.communicate(timeout=20)
    assert "requeue" not in output and task.returncode == int(ends)
