"""Segment images with a trained 2D model of nnU-Net."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_mamba_mis.ops.memory import keep_freed_memory
from nnunet_mamba_mis.prediction.batches import BatchedNetworks, Ticket
from nnunet_mamba_mis.prediction.model import Model
from nnunet_mamba_mis.prediction.networks import load_networks
from nnunet_mamba_mis.prediction.preprocessing import Preprocessing, Restored
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.pipeline import Ahead, behind
from nnunet_mamba_mis.utils.text import counted

T = TypeVar("T")
Labels = NDArray[Any]
WithProbabilities = tuple[NDArray[Any], NDArray[np.float32]]
# pixels (channels, slices, H, W) and properties, as nnU-Net's readers return them
Image = tuple[NDArray[Any], dict[str, Any]]

# largest number of images that wait in memory for the network, and of predictions that wait for `finish`
_AHEAD = 4


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """The result of predicting one item.

    Args:
        item: The caller's item that the image belongs to.
        result: The prediction, or None.
        error: Why the prediction failed; None on success, and for an item without an image.
        seconds: Time spent on the image, summed over threads.
    """

    item: T
    result: Restored | None
    error: Exception | None
    seconds: float


class Predictor:
    """Segment images with a trained 2D nnU-Net model, of any trainer, by nnU-Net's own rules.

    Labels and probabilities match `nnUNetv2_predict`: same normalization, sliding window with Gaussian weights,
    mirroring and mean over folds.

    Args:
        model_folder: Folder TRAINER__PLANS__CONFIGURATION that `nnUNetv2_train` wrote.
        folds: Fold numbers, or "all" for the fold of that name; the prediction is the mean over folds.
        device: "cpu", "cuda", "cuda:1" or "mps".
        mirroring: Whether to average over copies of the image mirrored along the axes that training mirrored.

    Raises:
        UserError: The model cannot be used, or the device does not exist.
    """

    def __init__(
        self,
        model_folder: str | Path,
        folds: Sequence[int | str] | int | str = (0,),
        device: str | torch.device = "cpu",
        mirroring: bool = True,
    ) -> None:
        self._device = _usable(device)
        self.model = Model.read(Path(model_folder))
        chosen = [folds] if isinstance(folds, int | str) else list(folds)
        if not chosen:
            raise UserError("folds is empty: give at least one fold, or 'all'")
        if self._device.type == "cpu":
            keep_freed_memory()
        networks, configuration, axes = load_networks(self.model, chosen)
        self._preprocessing = Preprocessing(self.model, configuration)
        self._networks = BatchedNetworks(
            networks, configuration.patch_size, self.model.dataset.heads, axes if mirroring else (), self._device
        )

    @overload
    def predict(self, image: NDArray[Any], probabilities: Literal[False] = False) -> Labels: ...

    @overload
    def predict(self, image: NDArray[Any], probabilities: Literal[True]) -> WithProbabilities: ...

    def predict(self, image: NDArray[Any], probabilities: bool = False) -> Labels | WithProbabilities:
        """Segment an image.

        Args:
            image: (H, W) or (H, W, channels), in the value range and pixel size of the training images. A model for
                three channels accepts a grey image too.
            probabilities: Whether to return probabilities too.

        Returns:
            Labels (H, W); with probabilities a pair of labels and probabilities (classes or regions, H, W).

        Raises:
            ValueError: The array is not an image that the model accepts.
        """
        ticket = next(self._networks.stream([self._ticket(image, self.from_array)]))
        return self._result(self._restored(ticket, probabilities))

    def predict_many(
        self, images: Iterable[NDArray[Any]], probabilities: bool = False
    ) -> Iterator[Labels | WithProbabilities]:
        """Segment many images, with the same results as `predict`, but faster.

        Small images share batches, and a thread reads ahead, so a result arrives up to a few images late. Call
        `predict` on each frame of a camera if results must not lag.

        Args:
            images: Images as for `predict`; iterated lazily.
            probabilities: Whether to yield probabilities too.

        Yields:
            What `predict` returns, in the order of the images.

        Raises:
            ValueError: An array is not an image that the model accepts.
        """
        with closing(self.stream(images, self.from_array, probabilities)) as outcomes:
            for outcome in outcomes:
                yield self._result(outcome)

    def stream(
        self,
        items: Iterable[T],
        read: Callable[[T], Image | None],
        probabilities: bool = True,
        together: bool = True,
        finish: Callable[[Outcome[T]], Any] = lambda outcome: outcome,
    ) -> Generator[Any, None, None]:
        """Read, preprocess, predict and finish images in order, in three threads.

        Args:
            items: Sources of images; iterated in a thread.
            read: Function that returns an item's image and properties as nnU-Net's readers do, or None for an item
                without an image; such an item keeps its place in the order. Exceptions of `read` become outcomes.
            probabilities: Whether to compute probabilities.
            together: Whether images share batches. If not, no outcome waits for later images.
            finish: Function called with each outcome, in a thread.

        Yields:
            What `finish` returns.
        """
        with closing(Ahead(self._tickets(items, read), _AHEAD)) as tickets:
            predicted = self._networks.stream(tickets, together)
            yield from behind(lambda ticket: finish(self._restored(ticket, probabilities)), predicted, _AHEAD)

    def _tickets(self, items: Iterable[T], read: Callable[[T], Image | None]) -> Iterator[Ticket[Any]]:
        try:
            for item in items:
                yield self._ticket(item, read)
        except Exception as error:  # raised by the caller's iterable; yield the results of earlier items first
            yield Ticket(None, error=error, is_last=True)

    def _ticket(self, item: T, read: Callable[[T], Image | None]) -> Ticket[T]:
        start = time.perf_counter()
        try:
            image = read(item)
            if image is None:
                return Ticket(item)
            prepared = self._preprocessing.prepare(*image)
            data = torch.from_numpy(np.ascontiguousarray(prepared.data))
        except Exception as error:  # readers and nnU-Net's normalizations can raise anything, or run out of memory
            return Ticket(item, error=error)
        return Ticket(item, data, properties=prepared.properties, seconds=time.perf_counter() - start)

    def _restored(self, ticket: Ticket[T], probabilities: bool) -> Outcome[T]:
        start = time.perf_counter()
        if ticket.is_last and ticket.error:
            raise ticket.error
        if ticket.logits is None:
            return Outcome(ticket.item, None, ticket.error, ticket.seconds)
        try:
            result = self._preprocessing.restore(ticket.logits.numpy(), ticket.properties, probabilities)
        except Exception as error:  # nnU-Net's resampling can raise anything, or run out of memory
            return Outcome(ticket.item, None, error, ticket.seconds)
        return Outcome(ticket.item, result, None, ticket.seconds + time.perf_counter() - start)

    def from_array(self, image: NDArray[Any]) -> Image:
        """Return an array in the form that nnU-Net's readers return.

        Raises:
            ValueError: The array is not an image that the model accepts.
        """
        channels = self.model.channels
        image = np.asarray(image)
        if image.dtype.kind not in "buif" or image.ndim not in (2, 3) or image.size == 0:
            raise ValueError(
                "expected a numeric, non-empty image (H, W) or (H, W, channels), "
                f"got dtype {image.dtype} and shape {image.shape}"
            )
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        if len(planes) == 1 and channels == 3:
            planes = planes.repeat(3, axis=0)
        if len(planes) != channels:
            names = ", ".join(self.model.dataset.channel_names.values())
            raise ValueError(
                f"the model takes {counted(channels, 'channel')} ({names}), got an image of shape {image.shape}"
            )
        if not np.isfinite(planes).all():
            raise ValueError("the image holds NaN or infinite values: replace them before prediction")
        return self._preprocessing.from_planes(np.ascontiguousarray(planes))

    def _result(self, outcome: Outcome[Any]) -> Any:
        if outcome.result is None:
            raise outcome.error or RuntimeError("the item has no image and so no prediction")
        labels, chances = outcome.result.labels, outcome.result.probabilities
        if chances is None:
            return self._preprocessing.to_plane(labels)
        return self._preprocessing.to_plane(labels), self._preprocessing.to_plane(chances)


def _usable(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        torch.zeros(1, device=usable)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises AssertionError
        raise UserError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None
    if usable.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return usable
