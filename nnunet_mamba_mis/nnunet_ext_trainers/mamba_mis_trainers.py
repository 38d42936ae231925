"""Shows our trainers to nnU-Net, which imports every module of this folder as a top-level module of its own.

Only re-exports, so that the class nnU-Net finds is the one in `nnunet_mamba_mis.trainers`. Its `__getattr__`, which
knows trainers of other lengths, is this module's too: nnU-Net looks a name up with `hasattr`.
"""

try:
    from nnunet_mamba_mis.trainers import *  # noqa: F403
    from nnunet_mamba_mis.trainers import __getattr__  # noqa: F401
except ModuleNotFoundError as error:
    # an environment without the package may inherit nnUNet_extTrainer from one that has it
    if error.name != "nnunet_mamba_mis":
        raise
