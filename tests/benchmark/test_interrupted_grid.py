"""`mamba_mis benchmark run` is killed, stopped and restarted, beside another command for the same grid."""

from __future__ import annotations

import os
import re
import signal

import pytest

from nnunet_mamba_mis.benchmark.running.processes import is_running
from nnunet_mamba_mis.benchmark.running.progress import read_progress
from support.benchmark_command import finish_training, logged_epochs, started_commands
from support.nnunet_workplace import kill_group
from support.small_dataset import NUMBER
from support.waiting import wait_until

pytestmark = pytest.mark.slow
SECONDS = 280


def test_stopped_grid_resumes_where_it_stopped_and_runs_no_job_twice(benchmark):
    grid = ["run", "-d", NUMBER, "--trainers", "Quick", "Long", "--folds", 0, "-device", "cpu"]
    quick, long = benchmark.job("Quick"), benchmark.job("Long")
    finish_training(quick)
    first = benchmark.start(*grid)
    wait_until(lambda: long.log.exists() and max(logged_epochs(long), default=0) >= 2, SECONDS, "epoch 2")
    # a second command for the same grid waits for the running job
    second = benchmark.start(*grid)
    wait_until(lambda: "already running" in second.output(), SECONDS, "the second command")
    table = benchmark.run("status", "-d", NUMBER)
    assert re.search(r"Long +running +[2-7]/8 +0\.\d{3} +\d+ s", table), table
    assert len(started_commands(long)) == 1

    # the training process detects that its command was killed, and saves; the second command takes over the job
    kill_group(first.process)
    wait_until(lambda: len(started_commands(long)) == 2, SECONDS, "the job's second start")
    taken_over = len(logged_epochs(long))
    wait_until(lambda: len(logged_epochs(long)) > taken_over, SECONDS, "an epoch of the second command")
    os.kill(second.process.pid, signal.SIGINT)
    output = second.end(status=128 + signal.SIGINT)
    assert re.search(r"Quick .* already done", output) and re.search(r"Long .* stopped after", output)
    assert (long.folder / "checkpoint_latest.pth").exists() and not is_running(long.folder)
    assert read_progress(long, running=False, queued=False).state == "interrupted"

    benchmark.start(*grid).end()
    assert [command.endswith("--c") for command in started_commands(long)] == [False, True, True]
    # only epochs in progress are repeated
    epochs = logged_epochs(long)
    assert sorted(set(epochs)) == list(range(8)) and len(epochs) <= 10 and epochs == sorted(epochs)
    assert not quick.log.read_text()
