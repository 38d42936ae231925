"""Runs that go wrong: non-finite steps, and input with which training cannot start."""

from __future__ import annotations

import pytest
import torch

from nnunet_mamba_mis.ops import native_library as native
from support.small_dataset import NAME, NUMBER, discs

OURS = "nnUNetTrainerMambaMIS"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _dataset(nnunet) -> None:
    discs(nnunet)


def fold(nnunet, trainer):
    return nnunet.results / NAME / f"{trainer}__nnUNetPlans__2d" / "fold_0"


@pytest.fixture(scope="module")
def recovered(nnunet) -> str:
    """Output of a run of six steps, of which the second and third are not finite."""
    return nnunet.train(NUMBER, 0, "Recovering")


def test_single_non_finite_steps_are_skipped_and_counted(nnunet, recovered):
    assert "2 in a row, 2 since the start" in recovered
    assert "Skipped 2 of 6 steps" in recovered
    assert "train_loss nan" not in recovered and "Training done" in recovered
    checkpoint = torch.load(fold(nnunet, "Recovering") / "checkpoint_final.pth", weights_only=False)
    assert all(weight.isfinite().all() for weight in checkpoint["network_weights"].values())


def test_twenty_non_finite_steps_in_a_row_stop_training(nnunet):
    output = nnunet.train(NUMBER, 0, "Broken", status=1)
    assert "Traceback" not in output
    assert "not finite in 20 consecutive steps" in output


@pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
def test_training_on_a_cpu_uses_the_native_scan(recovered):
    assert "Selective scan: backend cpp" in recovered


def test_checkpoint_holds_adamw_without_decay_on_state_parameters(nnunet, recovered):
    checkpoint = torch.load(fold(nnunet, "Recovering") / "checkpoint_final.pth", weights_only=False)
    decayed, exempt = checkpoint["optimizer_state"]["param_groups"]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    names = [n for n in checkpoint["network_weights"] if n.rpartition(".")[2] in ("A_log", "D", "bias")]
    norms = [n for n in checkpoint["network_weights"] if "norm" in n and n.endswith("weight")]
    norms += [n for n in checkpoint["network_weights"] if n.endswith("scan.fusion.0.weight")]
    assert len(exempt["params"]) == len(names) + len(norms)


@pytest.mark.parametrize(
    ("configuration", "device", "variables", "named"),
    [
        ("3d_fullres", "cpu", {}, "3d_fullres"),
        ("2d", "cpu", {"nnUNet_results": None}, "nnUNet_results"),
        pytest.param("2d", "cuda", {}, "-device cpu", marks=without_gpu),
    ],
    ids=["configuration", "path unset", "no GPU"],
)
def test_training_that_cannot_start_ends_with_one_message(nnunet, configuration, device, variables, named):
    before = sorted(nnunet.results.rglob("*"))
    arguments = [NUMBER, configuration, "0", "-tr", f"{OURS}_S", "-device", device]
    output = nnunet.run("nnUNetv2_train", *arguments, status=1, **variables)
    assert named in output.splitlines()[-1] and "Traceback" not in output
    assert sorted(nnunet.results.rglob("*")) == before


def test_3d_configuration_of_a_3d_dataset_is_refused():
    from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS

    sizes = {"2d": [64, 64], "3d_fullres": [32, 64, 64]}
    configurations = {name: {"patch_size": size, "architecture": {}} for name, size in sizes.items()}
    plans = {"dataset_name": "Dataset001_CT", "configurations": configurations, "continue_training": False}
    labels = {"background": 0, "polyp": 1}
    dataset = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 5}
    with pytest.raises(SystemExit, match="3d_fullres"):
        nnUNetTrainerMambaMIS(plans, "3d_fullres", 0, dataset, torch.device("cpu"))
