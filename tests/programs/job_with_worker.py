"""Run a job whose training forks a worker, print the training's process id, and wait: `python … RESULTS`."""

import sys
import time
from pathlib import Path

from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.benchmark.running.jobs import Candidate, Training
from nnunet_mamba_mis.benchmark.running.processes import RunningJob, try_lock

TRAINING = "import os, time; os.fork() or time.sleep(600); time.sleep(600)"


class Forking(Training):
    def commands(self, device):
        return [["python", "-c", TRAINING]]


job = Forking(Candidate(Path(sys.argv[1]), "Dataset001_A", Model("T", "P")), 0)
print(RunningJob(job, try_lock(job), "cpu", {}).process.pid, flush=True)
time.sleep(600)
