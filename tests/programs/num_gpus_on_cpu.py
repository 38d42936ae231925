"""`nnUNetv2_train DATASET 2d 0 -tr TRAINER -num_gpus 2` as a script: DATASET TRAINER RENDEZVOUS.

torch's `mp.spawn` imports it again in each process, so that what needs a GPU is replaced in all.
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
