"""nnU-Net's trainer, made for long unattended trainings of any network."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, nn

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.selective_scan.registry import fastest_backend
from nnunet_mamba_mis.trainers.resumable import ResumableTrainer


class RobustTrainer(ResumableTrainer):
    """nnU-Net's trainer, but a step with a non-finite loss or gradient is skipped.

    Network, optimiser and schedule are nnU-Net's.
    """

    # nnU-Net's value
    clip_norm: ClassVar[float] = 12
    max_skipped_in_a_row: ClassVar[int] = 20
    kept: ClassVar[tuple[str, ...]] = (*ResumableTrainer.kept, "skipped_steps", "skipped_in_a_row")
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def initialize(self) -> None:
        """Also keep DDP from sending buffers around: in the final validation processes go through it at their own pace.

        nnU-Net's own networks have none. Of ours only `_cnn` has, whose SyncBatchNorm has the same in all processes.
        """
        super().initialize()
        if self.is_ddp:
            self.network.broadcast_buffers = False

    def _set_batch_size_and_oversample(self) -> None:
        """Share the batch out equally: nnU-Net's batch Dice gathers one value per image, from all processes as many."""
        if self.is_ddp:
            planned, processes = self.configuration_manager.batch_size, dist.get_world_size()
            if planned < processes:
                raise SystemExit(
                    f"A batch of {planned} cannot be shared out among {processes} processes: use -num_gpus {planned} "
                    "or fewer, or set a larger batch_size in a copy of the plans and name it with -p"
                )
            shared = math.ceil(planned / processes) * processes
            if shared != planned:
                self.print_to_log_file(f"Batch size {shared}, not {planned}: the same share for each process")
                self.configuration_manager.configuration["batch_size"] = shared
        super()._set_batch_size_and_oversample()

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss, in which under DDP each output has a weight: one of 0 leaves parameters without gradient."""
        loss = super()._build_loss()
        if self.is_ddp and self.enable_deep_supervision:
            *weights, lowest = loss.weight_factors
            loss.weight_factors = (*weights, lowest or 1e-6)  # nnU-Net's own value where it does not compile
        return loss

    def log_scan_backend(self, discretization: str) -> None:
        """Say in the log what computes this training's selective scans."""
        backend = fastest_backend(torch.empty(0, device=self.device), discretization).name
        missing = native.why_unavailable() if self.device.type == "cpu" else None
        self.print_to_log_file(f"Selective scan: backend {backend}{f' (native code: {missing})' if missing else ''}")

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's training step, but a non-finite loss or gradient leaves the weights as they are."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [t.to(self.device, non_blocking=True) for t in target]
        else:
            target = target.to(self.device, non_blocking=True)

        self.optimizer.zero_grad(set_to_none=True)
        # autocast on CUDA only, as in nnU-Net
        with torch.autocast("cuda") if self.device.type == "cuda" else dummy_context():
            loss = self.loss(self.network(data), target)

        if self.grad_scaler is None:
            loss.backward()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        finite = self._all_finite(loss, norm)
        if self.grad_scaler is not None:
            if finite:
                self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()  # lowers the scale after an overflow
        elif finite:
            self.optimizer.step()
        self._count_step(finite, loss, norm)
        return {"loss": loss.detach().cpu().numpy()}

    def _all_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether loss and gradient norm are finite on every rank: all must skip, or none."""
        finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        if self.is_ddp:
            flag = finite.to(torch.int32)
            dist.all_reduce(flag, op=dist.ReduceOp.MIN)
            return bool(flag.item())
        return bool(finite.item())

    def _count_step(self, finite: bool, loss: Tensor, norm: Tensor) -> None:
        if finite:
            self.skipped_in_a_row = 0
            return
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        self.print_to_log_file(
            f"Step skipped: loss {loss.item():.4g}, gradient norm {norm.item():.4g} "
            f"({self.skipped_in_a_row} in a row, {self.skipped_steps} since the start). "
            "Single ones are normal in mixed precision, while its loss scale adapts."
        )
        if self.skipped_in_a_row >= self.max_skipped_in_a_row:
            raise SystemExit(
                f"Training stopped in epoch {self.current_epoch}: loss or gradient was not finite in "
                f"{self.skipped_in_a_row} steps in a row. Checkpoints in {self.output_folder} are from before that; "
                "weights were not updated with such a step. Likely causes: images with NaN, infinite or huge values "
                "(check with nnUNetv2_plan_and_preprocess --verify_dataset_integrity), labels that are not 0, 1, 2, "
                "…, or a learning rate that is too high."
            )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Keep skipped steps out of the mean loss, and count them in the log."""
        losses = np.array([float(output["loss"]) for output in train_outputs])
        finite = np.isfinite(losses)
        if finite.any() and not finite.all():
            self.print_to_log_file(f"Skipped {(~finite).sum()} of {len(losses)} steps: their loss was not finite")
            # as many entries as before: under DDP ranks stack their losses
            losses[~finite] = losses[finite].mean()
        super().on_train_epoch_end([{"loss": loss} for loss in losses])
