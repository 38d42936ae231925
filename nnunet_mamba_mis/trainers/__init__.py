"""nnU-Net trainers: every name in `__all__` works as `nnUNetv2_train ... -tr NAME`.

So does each with another length behind it, `_1epoch` or `_<N>epochs`: nnU-Net looks names up with `hasattr`.
"""

from nnunet_mamba_mis.trainers.base import ConfiguredTrainer
from nnunet_mamba_mis.trainers.nnUNetTrainerAdamW1e3 import nnUNetTrainerAdamW1e3
from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.paper import nnUNetTrainerMambaMIS_paper
from nnunet_mamba_mis.trainers.umamba import nnUNetTrainerUMambaBot, nnUNetTrainerUMambaEnc
from nnunet_mamba_mis.trainers.variants.ablations import (
    ABLATIONS as ABLATIONS,
)
from nnunet_mamba_mis.trainers.variants.ablations import (
    nnUNetTrainerMambaMIS_attentionOnly,
    nnUNetTrainerMambaMIS_cnn,
    nnUNetTrainerMambaMIS_fusionOnly,
    nnUNetTrainerMambaMIS_mambaDiscretization,
    nnUNetTrainerMambaMIS_noBridge,
    nnUNetTrainerMambaMIS_noSG,
    nnUNetTrainerMambaMIS_noSSM,
    nnUNetTrainerMambaMIS_ss2d,
    nnUNetTrainerMambaMIS_vit,
)
from nnunet_mamba_mis.trainers.variants.lengths import nnUNetTrainerMambaMIS_demo, split_length, with_length
from nnunet_mamba_mis.trainers.variants.sizes import nnUNetTrainerMambaMIS_L, nnUNetTrainerMambaMIS_S

__all__ = [
    "nnUNetTrainerAdamW1e3",
    "nnUNetTrainerMambaMIS",
    "nnUNetTrainerMambaMIS_L",
    "nnUNetTrainerMambaMIS_S",
    "nnUNetTrainerMambaMIS_attentionOnly",
    "nnUNetTrainerMambaMIS_cnn",
    "nnUNetTrainerMambaMIS_demo",
    "nnUNetTrainerMambaMIS_fusionOnly",
    "nnUNetTrainerMambaMIS_mambaDiscretization",
    "nnUNetTrainerMambaMIS_noBridge",
    "nnUNetTrainerMambaMIS_noSG",
    "nnUNetTrainerMambaMIS_noSSM",
    "nnUNetTrainerMambaMIS_paper",
    "nnUNetTrainerMambaMIS_ss2d",
    "nnUNetTrainerMambaMIS_vit",
    "nnUNetTrainerUMambaBot",
    "nnUNetTrainerUMambaEnc",
]


def __getattr__(name: str) -> type[ConfiguredTrainer]:
    """Return the trainer of a name that has a length.

    Raises:
        AttributeError: No trainer of ours has this name.
    """
    trainer, epochs = split_length(name)
    if trainer not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return with_length(globals()[trainer], epochs)


def __dir__() -> list[str]:
    return [*__all__, "ABLATIONS"]
