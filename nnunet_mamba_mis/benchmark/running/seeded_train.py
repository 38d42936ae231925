"""`nnUNetv2_train` with seeded generators: python -m nnunet_mamba_mis.benchmark.running.seeded_train SEED ...

nnU-Net has no option for a seed. What follows SEED are the arguments of nnUNetv2_train.
"""

from __future__ import annotations

import random
import sys


def main() -> None:
    """Seed the generators, then do what nnUNetv2_train does."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import run_training_entry

    seed = int(sys.argv.pop(1))
    # A continued training takes the state of its generators from the checkpoint if its trainer keeps it there. If not,
    # it must not draw once more what it has drawn in its first epochs.
    if "--c" not in sys.argv:
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)
    run_training_entry()


if __name__ == "__main__":
    main()
