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

# images that wait in memory before the network, and results behind it
_AHEAD = 4


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of an image.

    Args:
        item: Whose image it was.
        result: The prediction, or None.
        error: Why there is none; None if there was no image.
        seconds: All work on it, in whatever thread.
    """

    item: T
    result: Restored | None
    error: Exception | None
    seconds: float


class Predictor:
    """A trained 2D model of nnU-Net, of any trainer, that segments images by nnU-Net's own rules.

    Labels and probabilities are those of `nnUNetv2_predict`: the same normalization, sliding window with Gaussian
    weights, mirroring and mean of folds.

    Args:
        model_folder: The folder TRAINER__PLANS__CONFIGURATION that `nnUNetv2_train` made.
        folds: Numbers of folds, or "all" for the fold of this name; the mean of several is predicted.
        device: "cpu", "cuda", "cuda:1", "mps".
        mirroring: Whether to predict mirrored copies of an image too, as training mirrored.

    Raises:
        UserError: The model cannot be used, or there is no such device.
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
            raise UserError("folds: name at least one")
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
            image: (H, W) or (H, W, channels), with values as the training images have them; a grey image serves a model
                for three channels too. Pixels have the size of those in the plans.
            probabilities: Whether to return these, too.

        Returns:
            Labels (H, W), and probabilities (classes, H, W) or of regions.

        Raises:
            ValueError: The array is no image for the model.
        """
        ticket = next(self._networks.stream([self._ticket(image, self.from_array)]))
        return self._result(self._restored(ticket, probabilities))

    def predict_many(
        self, images: Iterable[NDArray[Any]], probabilities: bool = False
    ) -> Iterator[Labels | WithProbabilities]:
        """Segment images one after the other, each as `predict` does, faster together.

        Small images share batches, and the next are read in a thread of their own meanwhile, so that results come up
        to a few images later. For a camera whose frames are wanted at once, call `predict` on each.

        Args:
            images: Read lazily.
            probabilities: As of `predict`.

        Yields:
            What `predict` returns, in the order of the images.

        Raises:
            ValueError: An array is no image for the model.
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
        """Read, prepare, predict and finish images one after the other, in three threads.

        Args:
            items: Whatever images are read from; iterated over in a thread.
            read: Returns an item's image, as nnU-Net's readers give it, and its properties; None for an item that only
                keeps its place. What it raises becomes the item's outcome.
            probabilities: Whether to make these.
            together: Whether images share batches; the outcome of an image does not wait for the next ones if not.
            finish: Called with each outcome in a thread.

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
        except Exception as error:  # of whatever the images come from; those before it come first
            yield Ticket(None, error=error, is_last=True)

    def _ticket(self, item: T, read: Callable[[T], Image | None]) -> Ticket[T]:
        start = time.perf_counter()
        try:
            image = read(item)
            if image is None:
                return Ticket(item)
            prepared = self._preprocessing.prepare(*image)
            data = torch.from_numpy(np.ascontiguousarray(prepared.data))
        except Exception as error:  # of readers, of nnU-Net's normalizations, and for want of memory
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
        except Exception as error:  # of nnU-Net's resampling, and for want of memory
            return Outcome(ticket.item, None, error, ticket.seconds)
        return Outcome(ticket.item, result, None, ticket.seconds + time.perf_counter() - start)

    def from_array(self, image: NDArray[Any]) -> Image:
        """Return an array as nnU-Net's readers would give it.

        Raises:
            ValueError: It is no image for the model.
        """
        channels = self.model.channels
        image = np.asarray(image)
        if image.dtype.kind not in "buif" or image.ndim not in (2, 3) or image.size == 0:
            raise ValueError(f"expected an image (H, W) or (H, W, channels), found {image.dtype} {image.shape}")
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        if len(planes) == 1 and channels == 3:
            planes = planes.repeat(3, axis=0)
        if len(planes) != channels:
            names = ", ".join(self.model.dataset.channel_names.values())
            raise ValueError(f"the model takes {counted(channels, 'channel')} ({names}), found an image {image.shape}")
        if not np.isfinite(planes).all():
            raise ValueError("the image holds values that are not finite")
        return self._preprocessing.from_planes(np.ascontiguousarray(planes))

    def _result(self, outcome: Outcome[Any]) -> Any:
        if outcome.result is None:
            raise outcome.error or RuntimeError("nothing was predicted")
        labels, chances = outcome.result.labels, outcome.result.probabilities
        if chances is None:
            return self._preprocessing.to_plane(labels)
        return self._preprocessing.to_plane(labels), self._preprocessing.to_plane(chances)


def _usable(device: str | torch.device) -> torch.device:
    try:
        usable = torch.device(device)
        torch.zeros(1, device=usable)
    except (RuntimeError, AssertionError) as error:  # of the latter is torch built without CUDA
        raise UserError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None
    if usable.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return usable
