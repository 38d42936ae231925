"""Run `nnUNetv2_train DATASET 2d 0 -tr TRAINER -num_gpus 2` on CPUs: `python … DATASET TRAINER RENDEZVOUS`.

torch's `mp.spawn` imports this script again in each process, so each of them replaces what needs a GPU.
"""

import sys
from pathlib import Path

import torch
from nnunetv2.run import run_training

from support.ddp_on_cpu import replace_what_needs_a_gpu

dataset, trainer, rendezvous = sys.argv[1:]
replace_what_needs_a_gpu(Path(rendezvous))
if __name__ == "__main__":
    run_training.run_training(dataset, "2d", 0, trainer, num_gpus=2, device=torch.device("cuda"))
