"""`nnUNetv2_train` with seeded generators: python -m nnunet_mamba_mis.benchmark.running.seeded_train SEED ...

nnU-Net has no option for a seed. The arguments of nnUNetv2_train follow SEED.
"""

from __future__ import annotations

import random
import sys


def main() -> None:
    """Seed the generators, then run nnUNetv2_train."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import run_training_entry

    seed = int(sys.argv.pop(1))
    # A resumed run is not seeded: if its trainer saves the state of the generators, the checkpoint restores it, and if
    # not, seeding would repeat the random numbers of the first epochs.
    if "--c" not in sys.argv:
        for set_seed in (random.seed, np.random.seed, torch.manual_seed):
            set_seed(seed)
    run_training_entry()


if __name__ == "__main__":
    main()
