"""nnU-Net trainers: every name in `__all__` works as `nnUNetv2_train ... -tr NAME`.

Each name also works with a length appended, `_1epoch` or `_<N>epochs`: nnU-Net looks names up with `hasattr`, which
calls `__getattr__` below.
"""

import functools
import re

from nnunet_mamba_mis.trainers.ablations import *  # noqa: F403
from nnunet_mamba_mis.trainers.ablations import ABLATIONS
from nnunet_mamba_mis.trainers.base import ConfiguredTrainer
from nnunet_mamba_mis.trainers.conv import nnUNetTrainerMambaMIS_conv, nnUNetTrainerMambaMIS_conv_noSSM
from nnunet_mamba_mis.trainers.nnUNetTrainerAdamW1e3 import nnUNetTrainerAdamW1e3
from nnunet_mamba_mis.trainers.nnUNetTrainerMambaMIS import (
    nnUNetTrainerMambaMIS,
    nnUNetTrainerMambaMIS_demo,
    nnUNetTrainerMambaMIS_L,
    nnUNetTrainerMambaMIS_S,
)
from nnunet_mamba_mis.trainers.paper import nnUNetTrainerMambaMIS_paper
from nnunet_mamba_mis.trainers.umamba import nnUNetTrainerUMambaBot, nnUNetTrainerUMambaEnc

__all__ = [
    "nnUNetTrainerAdamW1e3",
    "nnUNetTrainerMambaMIS",
    "nnUNetTrainerMambaMIS_L",
    "nnUNetTrainerMambaMIS_S",
    "nnUNetTrainerMambaMIS_conv",
    "nnUNetTrainerMambaMIS_conv_noSSM",
    "nnUNetTrainerMambaMIS_demo",
    "nnUNetTrainerMambaMIS_paper",
    "nnUNetTrainerUMambaBot",
    "nnUNetTrainerUMambaEnc",
    *ABLATIONS,
]
# one spelling per length, that of nnU-Net's own trainers
_WITH_LENGTH = re.compile(r"(\w+)_(1epoch|([2-9]|[1-9][0-9]+)epochs)")


@functools.cache
def __getattr__(name: str) -> type[ConfiguredTrainer]:
    """Return the trainer for a name with a length: a subclass that sets only `epochs`, the same class every time.

    Raises:
        AttributeError: This package has no trainer of this name.
    """
    match = _WITH_LENGTH.fullmatch(name)
    if match is None or match[1] not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    epochs = int(match[2].rstrip("epochs"))
    doc = f"{match[1]} with epochs = {epochs}."
    # pickle and nnU-Net look the class up in this module
    return type(name, (globals()[match[1]],), {"__module__": __name__, "__doc__": doc, "epochs": epochs})
