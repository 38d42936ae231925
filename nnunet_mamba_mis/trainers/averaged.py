"""nnU-Net's trainer with averaged weights in validation and checkpoints."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from nnunet_mamba_mis.nnunet.checkpoint import Training
from nnunet_mamba_mis.trainers.pretrained_weights import unwrap
from nnunet_mamba_mis.trainers.robust import RobustTrainer
from nnunet_mamba_mis.trainers.weight_average import AVERAGE, WeightAverage
from nnunet_mamba_mis.utils.errors import UserError


class AveragedTrainer(RobustTrainer):
    """nnU-Net's trainer, with an exponential moving average of the weights if `ema_decay` is set.

    Training continues with the network's own weights. Validation, the choice of the best checkpoint and the
    `network_weights` in checkpoints, which prediction and export read, use the average. Checkpoints also hold the
    network's own weights, in the optimizer's state.
    """

    ema_decay: ClassVar[float | None] = None
    average: WeightAverage | None = None

    def initialize(self) -> None:
        """Initialize, and prepare the average."""
        super().initialize()
        if self.ema_decay is not None:
            average = self.average = WeightAverage(unwrap(self.network), self.ema_decay)
            self.optimizer.register_state_dict_post_hook(lambda _, state: state | {AVERAGE: average.record()})

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the network holds the average, if there is one."""
        return self.average.used() if self.average else nullcontext()

    def on_train_start(self) -> None:
        """Start training, and start the average, now that pretrained weights are loaded."""
        super().on_train_start()
        if self.average and not self.is_continued:
            self.average.start()

    def train_step(self, batch: dict) -> dict:
        """Run a training step; a skipped step does not change the average."""
        skipped = self.skipped_steps
        output = super().train_step(batch)
        if self.average and self.skipped_steps == skipped:
            self.average.update()
        return output

    def _validate_epoch(self) -> None:
        with self.averaged_weights():
            super()._validate_epoch()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run nnU-Net's final validation with the average."""
        with self.averaged_weights():
            super().perform_actual_validation(save_probabilities)

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint with the average as `network_weights`."""
        with self.averaged_weights():
            super().save_checkpoint(filename)

    def _load_fitting(self, checkpoint: Training, path: str) -> None:
        record = checkpoint.optimizer_state.average
        if self.average is None and record is not None:
            # network_weights are the average, from which training would silently continue
            raise UserError(
                f"{path} has averaged weights: set ema_decay in {type(self).__name__} as in the run that wrote it"
            )
        super()._load_fitting(checkpoint, path)
        if self.average is None:
            return
        if record is None:
            self.average.start()
            return
        try:
            self.average.restore(record.steps, record.own_weights)
        except ValueError as error:
            raise UserError(f"{path} is damaged: optimizer_state.{AVERAGE}.{error}") from None
