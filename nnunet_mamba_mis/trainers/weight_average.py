"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

# key in the optimizer's state
AVERAGE = "average"


class WeightAverage:
    """A running average of all parameters, which the network can hold instead of its own weights.

    Buffers, such as batch norm's, are always the network's. Weights are exchanged by copying, so the tensors that
    torch.compile and DDP have seen stay in place.

    Args:
        network: The network, without wrappers.
        decay: Fraction of the average that a step keeps. In step t, from 0, it is at most (1 + t) / (10 + t), so the
            first weights are soon forgotten.

    Raises:
        ValueError: The decay is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, found {decay}")
        self.parameters = dict(network.named_parameters())
        self.decay = decay
        self.start()

    def start(self) -> None:
        """Start from the network's current weights."""
        self.steps = 0
        # the average, or the network's own weights while the network holds the average
        self.others = self._copies()
        self.is_used = False

    def update(self) -> None:
        """Update the average with the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self.others, list(self.parameters.values()), self.steps)
        self.steps += 1

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the network hold the average within this context."""
        if self.is_used:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides the average: the number of steps and the network's own weights."""
        own = self.others if self.is_used else self._copies()
        return {"steps": self.steps, "own_weights": dict(zip(self.parameters, own, strict=True))}

    def restore(self, steps: int, own_weights: Mapping[str, Tensor]) -> None:
        """Take the average from the network, and give the network its own weights.

        Args:
            steps: Number of steps in the average.
            own_weights: The network's own weights by name, as in `record`.

        Raises:
            ValueError: The weights belong to another network; nothing was changed.
        """
        for name, parameter in self.parameters.items():
            if name not in own_weights or own_weights[name].shape != parameter.shape:
                raise ValueError(f"own_weights has no {name} of shape {tuple(parameter.shape)}")
        self.start()
        self.steps = steps
        self._set([own_weights[name] for name in self.parameters])

    def _exchange(self) -> None:
        held = self._copies()
        self._set(self.others)
        self.others, self.is_used = held, not self.is_used

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters.values()]

    @torch.no_grad()
    def _set(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self.parameters.values(), weights, strict=True):
            parameter.copy_(weight)
