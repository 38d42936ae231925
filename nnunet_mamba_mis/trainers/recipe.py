"""The training recipe: what variants set besides the network."""

from __future__ import annotations

from typing import Any, ClassVar

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_mamba_mis.trainers.augmentation import set_geometry, share_colour
from nnunet_mamba_mis.trainers.averaged import AveragedTrainer
from nnunet_mamba_mis.trainers.learning_rate import WarmupSchedule


class RecipeTrainer(AveragedTrainer):
    """nnU-Net's trainer, with class attributes that change augmentation and schedule; the defaults are nnU-Net's.

    Raises:
        SystemExit: The augmentation lacks a transform that an attribute changes.
    """

    # draw brightness, contrast and gamma once for all channels of colour images; other images keep one draw per channel
    joint_colour: ClassVar[bool] = False
    # rotation in degrees in either direction, range of the scale (above 1, objects get smaller), and the probability of
    # each; None keeps nnU-Net's value
    rotation: ClassVar[float | None] = None
    scaling: ClassVar[tuple[float, float] | None] = None
    p_rotation: ClassVar[float | None] = None
    p_scaling: ClassVar[float | None] = None
    # "poly" or "cosine", per epoch, after a warm-up that is linear in steps
    schedule: ClassVar[str] = "poly"
    warmup_epochs: ClassVar[float] = 0

    # nnU-Net has a static method here, but calls it on the instance, which knows the images
    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:  # type: ignore[override]
        """Return nnU-Net's augmentation with the changes of this recipe."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.joint_colour and self._has_colour_images():
            share_colour(transforms)
        set_geometry(transforms, self.rotation, self.scaling, self.p_rotation, self.p_scaling)
        return transforms

    def _has_colour_images(self) -> bool:
        reader = self.plans_manager.image_reader_writer_class
        return issubclass(reader, NaturalImage2DIO) and len(self.dataset_json["channel_names"]) == 3

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """Return nnU-Net's optimiser and the schedule of this recipe."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, self.make_schedule(optimizer)

    def make_schedule(self, optimizer: Optimizer) -> WarmupSchedule:
        """Return the schedule of this recipe for an optimiser."""
        return WarmupSchedule(
            optimizer,
            self.initial_lr,
            self.num_epochs,
            self.schedule,
            self.warmup_epochs,
            self.num_iterations_per_epoch,
        )

    def train_step(self, batch: dict) -> dict:
        """Run a training step, with a learning rate of its own in epochs that begin in the warm-up."""
        schedule = self.lr_scheduler
        if isinstance(schedule, WarmupSchedule) and self.current_epoch < schedule.warmup_epochs:
            schedule.step(self.current_epoch + len(self.train_outputs) / self.num_iterations_per_epoch)
        return super().train_step(batch)
