"""Averaged weights in validation, checkpoints, prediction and export, while training keeps its own weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch import nn

from nnunet_mamba_mis.export.fold import load_fold
from nnunet_mamba_mis.prediction.model import Model
from nnunet_mamba_mis.prediction.networks import load_networks
from nnunet_mamba_mis.trainers import nnUNetTrainerMambaMIS
from nnunet_mamba_mis.trainers.pretrained_weights import unwrap
from nnunet_mamba_mis.trainers.weight_average import WeightAverage
from support.trainer_in_process import FEW_WEIGHTS, make_trainer

Weights = dict[str, torch.Tensor]


class FinalValidation(nnUNetTrainer):
    """Record the weights of the final validation instead of predicting with them."""

    def perform_actual_validation(self, save_probabilities=False):
        self.validated.append(parameters(self))


class Watched(nnUNetTrainerMambaMIS, FinalValidation, nnUNetTrainerNoDA):
    """Train two epochs of four steps, skip the first epoch's third; record weights after steps and in validation."""

    architecture: ClassVar = FEW_WEIGHTS
    epochs, iterations_per_epoch, validation_iterations_per_epoch = 2, 4, 1
    ema_decay = 0.3

    def initialize(self):
        super().initialize()
        self.logger.plot_progress_png = lambda folder: None
        self.trained: list[Weights] = []
        self.validated: list[Weights] = []

    def train_step(self, batch):
        if not self.trained:
            self.trained.append(parameters(self))
        loss = self.loss
        if (self.current_epoch, len(self.train_outputs)) == (0, 2):
            self.loss = lambda *arguments: loss(*arguments) * math.inf
        output = super().train_step(batch)
        if self.loss is loss:
            self.trained.append(parameters(self))
        self.loss = loss
        return output

    def validation_step(self, batch):
        self.validated.append(parameters(self))
        return super().validation_step(batch)


def parameters(trainer: Any) -> Weights:
    return {name: weight.detach().clone() for name, weight in unwrap(trainer.network).named_parameters()}


def make(preprocessed: Path, continued: bool = False, pretrained: str | None = None, **attributes: object) -> Any:
    trainer = make_trainer(type("Watched", (Watched,), attributes), preprocessed, continued)
    maybe_load_checkpoint(trainer, continued, False, pretrained)
    return trainer


def saved(trainer: Any) -> dict:
    return torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)


def average(start: Weights, *steps: Weights) -> Weights:
    averaged = {name: weight.double() for name, weight in start.items()}
    for number, weights in enumerate(steps):
        kept = min(0.3, (1 + number) / (10 + number))
        averaged = {name: kept * averaged[name] + (1 - kept) * weight for name, weight in weights.items()}
    return averaged


def assert_close(actual: Weights, expected: Weights) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name].double(), weight, rtol=1e-5, atol=1e-6, msg=name)


def assert_equal(actual: Weights, expected: Weights) -> None:
    assert all(torch.equal(actual[name], weight) for name, weight in expected.items())


@pytest.fixture
def trained(in_this_process) -> Any:
    trainer = make(in_this_process)
    trainer.run_training()
    trainer.perform_actual_validation()
    return trainer


@pytest.mark.feature("Recipe", "`ema_decay`: validation, prediction and export use averaged weights")
def test_validation_and_checkpoints_have_the_average_and_training_its_own_weights(trained):
    start, *steps = trained.trained
    assert len(steps) == 7  # one of eight was skipped
    expected = average(start, *steps)
    first, last, final = trained.validated
    assert_close(first, average(start, *steps[:3]))
    for weights in (last, final, saved(trained)["network_weights"]):
        assert_close(weights, expected)
    record = saved(trained)["optimizer_state"]["average"]
    assert record["steps"] == 7
    assert_equal(record["own_weights"], steps[-1])
    assert_equal(parameters(trained), steps[-1])
    assert max((expected[name] - weight).abs().max() for name, weight in steps[-1].items()) > 1e-4


def test_batch_norm_statistics_are_not_averaged(trained):
    buffers = dict(unwrap(trained.network).named_buffers())
    assert any(name.endswith("running_mean") for name in buffers)
    assert_equal(saved(trained)["network_weights"], buffers)


@pytest.mark.feature("Recipe", "`ema_decay`: validation, prediction and export use averaged weights")
def test_prediction_and_export_read_the_average(trained):
    model = Path(trained.output_folder_base)
    exported = load_fold(model, "0", "checkpoint_final.pth").network
    (predicting,) = load_networks(Model.read(model), [0]).folds
    # both lack the further outputs of deep supervision
    names = dict(exported.named_parameters())
    expected = {name: weight for name, weight in average(*trained.trained).items() if name in names}
    assert len(expected) == len(names)
    for network in (exported, predicting):
        assert_close(network.state_dict(), expected)


@pytest.mark.feature("Recipe", "`ema_decay`: validation, prediction and export use averaged weights")
def test_validation_of_a_finished_run_uses_the_average(trained, in_this_process):
    validated = make(in_this_process, continued=True)
    validated.perform_actual_validation()
    assert_equal(validated.validated[0], trained.validated[-1])
    assert_equal(parameters(validated), trained.trained[-1])


def test_average_starts_from_pretrained_weights(trained, in_this_process, tmp_path, monkeypatch):
    pretrained = Path(trained.output_folder) / "checkpoint_final.pth"
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "fine-tuned"))
    tuned = make(in_this_process, pretrained=str(pretrained), initial_lr=0.0)
    tuned.run_training()
    given = {name: weight for name, weight in trained.validated[-1].items() if ".seg_layers." not in name}
    assert_equal(saved(tuned)["network_weights"], given)


def test_checkpoint_without_an_average_starts_one(in_this_process):
    make(in_this_process, ema_decay=None).run_training()
    continued = make(in_this_process, continued=True, ema_decay=0.5)
    assert_equal(dict(zip(continued.average.parameters, continued.average.others, strict=True)), parameters(continued))
    assert continued.average.steps == 0


def test_checkpoint_with_an_average_needs_a_trainer_that_averages(trained, in_this_process):
    with pytest.raises(SystemExit, match=r"checkpoint_final.pth has averaged weights: set ema_decay in Watched"):
        make(in_this_process, continued=True, ema_decay=None)


def test_compiled_network_computes_with_the_average():
    network = nn.Linear(3, 2)
    compiled = torch.compile(network, backend="eager")
    images, outputs = torch.ones(1, 3), {}
    outputs["first"] = compiled(images)
    weights = WeightAverage(unwrap(compiled), 0.9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    outputs["second"] = compiled(images)
    weights.update()
    with weights.used(), weights.used():
        assert torch.allclose(compiled(images), 0.1 * outputs["first"] + 0.9 * outputs["second"])
    assert torch.equal(compiled(images), outputs["second"])


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"ema_decay .*{decay}"):
        WeightAverage(nn.Linear(1, 1), decay)
