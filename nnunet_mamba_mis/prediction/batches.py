"""Images through networks, in batches of tiles and their mirrored copies that may be of several images."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.prediction.sliding_window import Canvas, Size, Tile
from nnunet_mamba_mis.utils.errors import UserError

T = TypeVar("T")

# pixels of a batch, and the most images in it: more of them bring nothing
_LARGEST = {"cpu": (2**18, 8), "other": (2**22, 64)}


@dataclass
class Ticket(Generic[T]):
    """An image on its way, or anything that only keeps its place among them.

    Args:
        item: Whose image it is.
        data: The image (channels, slices, H, W), or None.
        properties: Of the image.
        logits: What the networks make of it, once they have.
        error: What came instead.
        is_last: Whether the error ended the images.
        seconds: Of work on it so far.
        canvas: Where its tiles add up.
    """

    item: T
    data: Tensor | None = None
    properties: dict[str, Any] = field(default_factory=dict)
    logits: Tensor | None = None
    error: Exception | None = None
    is_last: bool = False
    seconds: float = 0.0
    canvas: Canvas | None = field(default=None, repr=False)


class BatchedNetworks:
    """Networks of several folds that predict tiles together.

    Args:
        networks: In evaluation mode.
        tile_size: Height and width of the images that they take.
        heads: Channels of their logits.
        mirror_axes: Of images (H, W); the mean over all mirrored copies is predicted.
        device: Where to run.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        tile_size: Size,
        heads: int,
        mirror_axes: Sequence[int],
        device: torch.device,
    ) -> None:
        self._networks = [network.to(device) for network in networks]
        self._tile_size, self._heads, self._device = tile_size, heads, device
        # nnU-Net's order; of tensors (B, C, H, W)
        axes = [axis + 2 for axis in mirror_axes]
        self._mirrors = [c for number in range(len(axes) + 1) for c in itertools.combinations(axes, number)]
        pixels, most = _LARGEST.get(device.type, _LARGEST["other"])
        self._batch = max(1, min(most, pixels // (tile_size[0] * tile_size[1])))
        self._tiles = max(1, self._batch // len(self._mirrors))

    def stream(self, tickets: Iterable[Ticket[T]], together: bool = True) -> Iterator[Ticket[T]]:
        """Fill in logits and yield tickets in their order, up to a batch behind.

        Args:
            tickets: Images, and what passes through.
            together: Whether a batch may hold tiles of several images.
        """
        waiting: deque[Ticket[T]] = deque()
        pending: list[tuple[Ticket[T], Tile]] = []
        for ticket in tickets:
            waiting.append(ticket)
            for tile in self._open(ticket):
                pending.append((ticket, tile))
                if len(pending) == self._tiles:
                    self._predict(pending)
                    pending = []
            if pending and not together:
                self._predict(pending)
                pending = []
            yield from _finished(waiting)
        if pending:
            self._predict(pending)
        yield from _finished(waiting)

    def _open(self, ticket: Ticket[T]) -> list[Tile]:
        if ticket.data is None:
            return []
        ticket.canvas = Canvas(ticket.data, self._tile_size, len(self._networks), self._heads, self._device)
        return ticket.canvas.tiles

    @torch.inference_mode()
    def _predict(self, pending: Sequence[tuple[Ticket[T], Tile]]) -> None:
        start = time.perf_counter()
        canvases = [(ticket.canvas, tile) for ticket, tile in pending if ticket.canvas]
        patches = torch.stack([canvas.patch(tile) for canvas, tile in canvases])
        for fold, network in enumerate(self._networks):
            for (canvas, tile), logits in zip(canvases, self._mean_of_mirrored(network, patches), strict=True):
                canvas.add(fold, tile, logits)
        share = (time.perf_counter() - start) / len(pending)
        for ticket, _ in pending:
            ticket.seconds += share

    def _mean_of_mirrored(self, network: nn.Module, patches: Tensor) -> Tensor:
        copies = torch.cat([patches.flip(axes) for axes in self._mirrors])
        logits = self._run(network, copies).chunk(len(self._mirrors))
        total = logits[0]
        for axes, mirrored in zip(self._mirrors[1:], logits[1:], strict=True):
            total = total + mirrored.flip(axes)
        return total / len(logits)

    def _run(self, network: nn.Module, patches: Tensor) -> Tensor:
        # as nnU-Net: half precision on GPUs alone
        with torch.autocast("cuda") if self._device.type == "cuda" else nullcontext():
            while True:
                try:
                    return torch.cat([network(part) for part in patches.split(self._batch)])
                except torch.OutOfMemoryError:
                    if self._batch == 1:
                        size = " × ".join(map(str, self._tile_size))
                        raise UserError(
                            f"a patch of {size} pixels does not fit into the memory of {self._device}: use the CPU"
                        ) from None
                    self._batch //= 2
                    torch.cuda.empty_cache()


def _finished(waiting: deque[Ticket[T]]) -> Iterator[Ticket[T]]:
    while waiting and (waiting[0].canvas is None or waiting[0].canvas.is_complete):
        ticket = waiting.popleft()
        if ticket.canvas is not None:
            try:
                ticket.logits = ticket.canvas.logits()
            except OverflowError as error:
                ticket.error = error
        ticket.data = ticket.canvas = None
        yield ticket
