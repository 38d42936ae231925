"""The learning rate over the epochs of a run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# factors that fall from 1 at the start to 0 at the end, as functions of the fraction of the decay that is done
SHAPES = {
    "poly": lambda done: (1 - done) ** 0.9,  # nnU-Net's
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class WarmupSchedule(LRScheduler):
    """A linear warm-up, set per step, then a decay to 0, set per epoch.

    Args:
        optimizer: All its groups get the same rate.
        initial_lr: The highest rate.
        epochs: Length of training.
        shape: Name of the decay, in `SHAPES`.
        warmup_epochs: Length of the warm-up, limited to half of training.
        steps_per_epoch: Training steps in an epoch.

    Raises:
        ValueError: The shape does not exist.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        epochs: int,
        shape: str = "poly",
        warmup_epochs: float = 0,
        steps_per_epoch: int = 1,
    ) -> None:
        if shape not in SHAPES:
            raise ValueError(f"schedule {shape!r} does not exist: use one of {', '.join(SHAPES)}")
        self.initial_lr = initial_lr
        self.epochs = epochs
        self.shape = SHAPES[shape]
        self.warmup_epochs = min(warmup_epochs, epochs / 2)
        self.steps_per_epoch = steps_per_epoch
        super().__init__(optimizer)

    def step(self, epoch: float | None = None) -> None:  # type: ignore[override]
        """Set the rate.

        Args:
            epoch: Number of the epoch, from 0; a fraction stands for a step in it.
        """
        # torch's constructor passes no epoch
        rate = self.rate(epoch or 0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate] * len(self.optimizer.param_groups)

    def rate(self, epoch: float) -> float:
        """Return the rate of an epoch, or of a step in it; it is above 0 even in the first step of the warm-up."""
        if epoch < self.warmup_epochs:
            return self.initial_lr * min(1, (epoch + 1 / self.steps_per_epoch) / self.warmup_epochs)
        return self.initial_lr * self.shape((epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs))
