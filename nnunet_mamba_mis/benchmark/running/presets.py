"""Named fair comparisons: trainers of a preset share plans, and thus patch size, batch size and preprocessing."""

from __future__ import annotations

from typing import NamedTuple

from nnunet_mamba_mis.utils.errors import UserError

# numbers of epochs for which both nnU-Net and this package have trainers
EPOCHS = (1, 5, 10, 20, 50, 100, 250, 500, 1000)
OURS = "nnUNetTrainerMambaMIS"


class Preset(NamedTuple):
    """Trainers to compare on one plans file; the first is the baseline."""

    question: str
    trainers: tuple[str, ...]
    plans: str = "nnUNetPlans"
    planner: str = "ExperimentPlanner"  # for nnUNetv2_plan_and_preprocess -pl, to make the plans
    test_sets: bool = False  # whether to predict the dataset's test sets, too
    ablations: bool = False  # whether to add the ablations, which take seconds to import


# stock nnU-Net, nnU-Net with the optimiser of Mamba-MIS, Mamba-MIS, and Mamba-MIS without state spaces
_AGAINST_NNUNET = ("nnUNetTrainer", "nnUNetTrainerAdamW1e3", OURS, f"{OURS}_noSSM")

PRESETS = {
    "baseline": Preset(
        "Is Mamba-MIS better than nnU-Net, and is that due to network, optimiser or scan?", _AGAINST_NNUNET
    ),
    "resenc-m": Preset(
        "Is Mamba-MIS better than nnU-Net's residual encoder M, on that network's plans?",
        _AGAINST_NNUNET,
        "nnUNetResEncUNetMPlans",
        "nnUNetPlannerResEncM",
    ),
    "resenc-l": Preset(
        "Is Mamba-MIS better than nnU-Net's residual encoder L, on that network's plans?",
        _AGAINST_NNUNET,
        "nnUNetResEncUNetLPlans",
        "nnUNetPlannerResEncL",
    ),
    "mamba": Preset(
        "Which Mamba, if any, is better than nnU-Net?",
        ("nnUNetTrainer", "nnUNetTrainerUMambaBot", "nnUNetTrainerUMambaEnc", OURS),
    ),
    "pranet": Preset(
        "Is Mamba-MIS better than nnU-Net on PraNet's five test sets of polyps (`mamba_mis convert pranet`)?",
        _AGAINST_NNUNET,
        test_sets=True,
    ),
    "sizes": Preset("Which size of Mamba-MIS?", (f"{OURS}_S", OURS, f"{OURS}_L")),
    "ablations": Preset("What does each part of Mamba-MIS contribute?", (OURS,), ablations=True),
}


def get_preset(name: str, epochs: int | None = None) -> Preset:
    """Return a preset with trainers that train for this number of epochs.

    Args:
        name: A key of `PRESETS`.
        epochs: One of `EPOCHS`; None for 1000, the length of trainers without a suffix.

    Raises:
        UserError: The preset does not exist, or no trainers for this number of epochs exist.
    """
    if name not in PRESETS:
        raise UserError(f"preset {name!r} does not exist: choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if preset.ablations:
        from nnunet_mamba_mis.trainers import ABLATIONS

        preset = preset._replace(trainers=(*preset.trainers, *ABLATIONS))
    if epochs is None or epochs == EPOCHS[-1]:
        return preset
    if epochs not in EPOCHS:
        raise UserError(f"no trainers for {epochs} epochs exist: choose one of {', '.join(map(str, EPOCHS))}")
    suffix = f"_{epochs}epoch" + "s" * (epochs > 1)
    return preset._replace(trainers=tuple(trainer + suffix for trainer in preset.trainers))
