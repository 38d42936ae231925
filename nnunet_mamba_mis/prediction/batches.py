"""Run images through networks in batches of tiles and mirrored tiles; a batch may span several images."""

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

# largest numbers of pixels and of images per batch; larger batches are no faster
_BATCH_LIMITS = {"cpu": (2**18, 8), "other": (2**22, 64)}


@dataclass
class Ticket(Generic[T]):
    """An image on its way through the networks, or a placeholder that keeps an item's place in the order.

    Args:
        item: The caller's item that the image belongs to.
        data: The image (channels, slices, H, W), or None for a placeholder.
        properties: The image's properties.
        logits: The networks' logits, once predicted.
        error: Why there is no image or no logits.
        is_last: Whether the error ended the stream of images.
        seconds: Time spent on the image so far.
        canvas: Canvas that accumulates the image's tiles.
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
    """The networks of one or more folds, run on batches of tiles.

    Args:
        networks: One per fold, in evaluation mode.
        tile_size: Height and width of the networks' input.
        heads: Number of logit channels.
        mirror_axes: Axes of images (H, W) to mirror; the prediction is the mean over all mirrored copies.
        device: Device to run on.
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
        # axes along which to flip each copy, in nnU-Net's order, as axes of tensors (B, C, H, W)
        axes = [axis + 2 for axis in mirror_axes]
        self._mirrors = [c for number in range(len(axes) + 1) for c in itertools.combinations(axes, number)]
        max_pixels, max_images = _BATCH_LIMITS.get(device.type, _BATCH_LIMITS["other"])
        self._batch_size = max(1, min(max_images, max_pixels // (tile_size[0] * tile_size[1])))
        self._tiles_per_batch = max(1, self._batch_size // len(self._mirrors))

    def stream(self, tickets: Iterable[Ticket[T]], together: bool = True) -> Iterator[Ticket[T]]:
        """Fill in logits and yield tickets in order, at most one batch behind the input.

        Args:
            tickets: Images and placeholders.
            together: Whether a batch may hold tiles of several images.
        """
        waiting: deque[Ticket[T]] = deque()
        pending: list[tuple[Ticket[T], Tile]] = []
        for ticket in tickets:
            waiting.append(ticket)
            for tile in self._open(ticket):
                pending.append((ticket, tile))
                if len(pending) == self._tiles_per_batch:
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
        # half precision only on GPUs, as in nnU-Net
        with torch.autocast("cuda") if self._device.type == "cuda" else nullcontext():
            while True:
                try:
                    return torch.cat([network(part) for part in patches.split(self._batch_size)])
                except torch.OutOfMemoryError:
                    if self._batch_size == 1:
                        size = " × ".join(map(str, self._tile_size))
                        raise UserError(
                            f"{self._device} is out of memory for one patch of {size} pixels: "
                            "free some of its memory, or use the CPU"
                        ) from None
                    self._batch_size //= 2
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
