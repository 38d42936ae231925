"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# its name in the optimizer's state
AVERAGE = "average"


class WeightAverage:
    """The average of all parameters after each step, kept beside the network, which holds one or the other.

    Buffers, as of batch norm, are the network's in both cases. Weights are exchanged by copying: what torch.compile and
    DDP have seen stays where it is.

    Args:
        network: The network, without wrappers.
        decay: Part of the average that a step keeps. Of step t, from 0, it is at most (1 + t) / (10 + t), so that the
            first weights are soon forgotten.

    Raises:
        ValueError: The decay is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay must be between 0 and 1, found {decay}")
        self.parameters = dict(network.named_parameters())
        self.decay = decay
        self.steps = 0
        # the average, or while the network holds it, its own weights
        self.others: list[Tensor] = []
        self.is_used = False

    def start(self) -> None:
        """Begin with the network's weights, unless there is an average already."""
        if not self.others:
            self.others = self._copies()

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the average."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.others, list(self.parameters.values()), 1 - decay)
        self.steps += 1

    @contextmanager
    def used(self) -> Iterator[None]:
        """While entered, the network holds the average."""
        if self.is_used:
            yield
            return
        self.start()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        held = self._copies()
        torch._foreach_copy_(list(self.parameters.values()), self.others)
        self.others, self.is_used = held, not self.is_used

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters.values()]

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the average: the network's own weights."""
        own = self.others if self.is_used else [parameter.detach() for parameter in self.parameters.values()]
        return {"steps": self.steps, "own_weights": dict(zip(self.parameters, own, strict=True))}

    @torch.no_grad()
    def restore(self, steps: int, own_weights: Mapping[str, Tensor]) -> None:
        """Take the average from the network, and give the network its own weights.

        Args:
            steps: How many are in the average.
            own_weights: By name, as in `record`.

        Raises:
            ValueError: The weights are of another network.
        """
        for name, parameter in self.parameters.items():
            if name not in own_weights or own_weights[name].shape != parameter.shape:
                raise ValueError(f"own_weights lack {name} of shape {tuple(parameter.shape)}")
        self.steps, self.others = steps, self._copies()
        for name, parameter in self.parameters.items():
            parameter.copy_(own_weights[name])
