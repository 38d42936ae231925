"""`mamba_mis benchmark run --slurm` on a real Slurm that is started for the test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.running.jobs import Candidate, Prediction, Training
from nnunet_mamba_mis.benchmark.test_sets import TestSet
from support.benchmark_command import logged_epochs
from support.paths import REPOSITORY
from support.small_dataset import ELSEWHERE, NUMBER, OTHER
from support.waiting import wait_until

SECONDS = 280


@pytest.fixture(scope="module")
def slurm():
    """Environment variables for the commands of a one-node Slurm."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'nnunet-mamba-mis[slurm]'")
    script = REPOSITORY / "scripts" / "start_slurm_for_tests.sh"
    # not in pytest's own folder, as sockets need short paths
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        started = subprocess.run(["bash", script, folder], capture_output=True, text=True)
        if started.returncode == 3:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stdout + started.stderr
        variables = {"SLURM_CONF": f"{folder}/slurm.conf"}
        yield variables
        # jobs of a failed test must not outlive the daemons
        subprocess.run(["scancel", "--full", "--user", str(os.getuid())], env=os.environ | variables, check=True)
        wait_until(lambda: not queue(variables), 30)
        subprocess.run(["bash", script, folder, "stop"], check=True)


def queue(variables: dict[str, str]) -> str:
    command = ["squeue", "--noheader"]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_jobs_are_submitted_once_and_a_preempted_one_resumes(slurm, nnunet, dataset, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    variables = nnunet.variables | slurm | {"nnUNet_results": str(results)}
    variables |= {"OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}

    def call(*command: object) -> str:
        done = subprocess.run([*map(str, command)], env=variables, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    benchmark = [sys.executable, "-m", "nnunet_mamba_mis.cli", "benchmark"]
    submit = [*benchmark, "run", "-d", NUMBER, "--trainers", "Long", "Refusing", "--folds", 0, "-device", "cpu"]
    submit += ["--slurm", "--partition", "tests", "--time", "1:00:00", "--memory", 0.4, "--cpus", 1]
    submit += ["--array-limit", 2, "--sbatch", "comment=lab", "--test-on", ELSEWHERE]
    queued, refusing = (
        Training(Candidate(results, dataset.name, Model(trainer)), 0) for trainer in ("Long", "Refusing")
    )
    output = call(*submit)
    number = re.search(r"^(\d+)_0: .* Long", output, re.M)[1]
    assert "4 jobs: 0 done, 0 in the queue, 4 new" in output
    test_set = TestSet(OTHER, "imagesTr")
    tests = {job.candidate.model.trainer: Prediction(job.candidate, (0,), test_set) for job in (queued, refusing)}
    waiting = call("scontrol", "show", "job", tests["Long"].folder.joinpath("benchmark.slurm").read_text())
    assert f"Dependency=afterany:{number}_0(unfulfilled)" in waiting
    described = call("scontrol", "show", "job", number)
    for setting in ("Partition=tests", "TimeLimit=01:00:00", "ArrayTaskThrottle=2", "Comment=lab", "Requeue=1"):
        assert setting in described
    # submitting again at once adds nothing
    assert "0 new" in call(*submit)
    (results / "refuse").touch()

    wait_until(lambda: queued.log.exists() and "Epoch 2" in queued.log.read_text(), SECONDS)
    assert re.search(r"Long +- +running +\d+/8", call(*benchmark, "status"))
    # the signal that Slurm sends before the time limit and before a preemption
    call("scancel", "--signal=USR2", f"{number}_0")
    wait_until(queued.is_done, SECONDS)
    log = queued.log.read_text()
    commands = re.findall(r"nnUNetv2_train .*", log)
    assert len(commands) == 2 and commands[1].endswith("--c")
    assert "Stopped by SIGTERM in epoch" in log
    epochs = logged_epochs(queued)
    assert sorted(set(epochs)) == list(range(8)) and len(epochs) <= 9 and epochs == sorted(epochs)
    # a job that fails by itself is not requeued
    wait_until(lambda: not queue(slurm), SECONDS)
    assert len(re.findall(r"nnUNetv2_train .*", refusing.log.read_text())) == 1
    assert re.search(r"Refusing +- +failed", call(*benchmark, "status"))
    assert "ValueError: not today" in "".join(
        path.read_text() for path in Path(results).glob("benchmark_slurm/*_1*.out")
    )
    # predictions start when training has ended, and report a missing fold
    assert tests["Long"].is_done() and not tests["Refusing"].is_done()
    assert "failed: fold 0 is not done" in tests["Refusing"].log.read_text()
    assert re.search(r"Refusing .*imagesTr +failed", call(*benchmark, "status"))
    assert "2 done, 0 in the queue, 2 new" in call(*submit)
