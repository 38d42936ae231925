"""Make our trainers visible to nnU-Net, which imports every module of this folder as a top-level module.

The module only re-exports, so the class that nnU-Net finds is the one in `nnunet_mamba_mis.trainers`. nnU-Net looks a
name up with `hasattr`. The module therefore also re-exports `__getattr__`, which makes trainers for other numbers of
epochs.
"""

try:
    from nnunet_mamba_mis.trainers import *  # noqa: F403
    from nnunet_mamba_mis.trainers import __getattr__  # noqa: F401
except ModuleNotFoundError as error:
    # a Python environment without the package may inherit nnUNet_extTrainer from one that has it
    if error.name != "nnunet_mamba_mis":
        raise
