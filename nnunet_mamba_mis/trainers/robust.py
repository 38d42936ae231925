"""nnU-Net's trainer, hardened for long unattended runs of any network."""

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
    """nnU-Net's trainer, but it skips steps with a non-finite loss or gradient.

    Network, optimiser and schedule are nnU-Net's.
    """

    # nnU-Net's value
    clip_norm: ClassVar[float] = 12
    max_skipped_in_a_row: ClassVar[int] = 20
    kept: ClassVar[tuple[str, ...]] = (*ResumableTrainer.kept, "skipped_steps", "skipped_in_a_row")
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def initialize(self) -> None:
        """Initialize, and keep DDP from broadcasting buffers: in the final validation, processes run at their own pace.

        nnU-Net's networks have no buffers. Of this package's networks, only the network of `_cnn` has them: those of
        SyncBatchNorm, which are equal in all processes.
        """
        super().initialize()
        if self.is_ddp:
            self.network.broadcast_buffers = False

    def _set_batch_size_and_oversample(self) -> None:
        """Give all processes equal shares of the batch: nnU-Net's batch Dice gathers equally many values from each."""
        if self.is_ddp:
            planned, processes = self.configuration_manager.batch_size, dist.get_world_size()
            if planned < processes:
                raise SystemExit(
                    f"A batch of {planned} cannot be split among {processes} processes: use -num_gpus {planned} or "
                    "fewer, or set a larger batch_size in a copy of the plans and select it with -p"
                )
            shared = math.ceil(planned / processes) * processes
            if shared != planned:
                self.print_to_log_file(f"Batch size {shared} instead of {planned}: each process gets an equal share")
                self.configuration_manager.configuration["batch_size"] = shared
        super()._set_batch_size_and_oversample()

    def _build_loss(self) -> nn.Module:
        """Return nnU-Net's loss; under DDP, replace a weight of 0, which would leave parameters without a gradient."""
        loss = super()._build_loss()
        if self.is_ddp and self.enable_deep_supervision:
            *weights, lowest = loss.weight_factors
            loss.weight_factors = (*weights, lowest or 1e-6)  # nnU-Net's own value when it does not compile
        return loss

    def log_scan_backend(self, discretization: str) -> None:
        """Log which backend computes the selective scans."""
        backend = fastest_backend(torch.empty(0, device=self.device), discretization).name
        missing = native.why_unavailable() if self.device.type == "cpu" else None
        self.print_to_log_file(f"Selective scan: backend {backend}{f' (native code: {missing})' if missing else ''}")

    def train_step(self, batch: dict) -> dict:
        """Run nnU-Net's training step, but leave the weights alone if loss or gradient is not finite."""
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
        """Return whether loss and gradient norm are finite on every rank: all ranks must skip, or none."""
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
            f"Skipped a step: loss {loss.item():.4g}, gradient norm {norm.item():.4g} "
            f"({self.skipped_in_a_row} in a row, {self.skipped_steps} since the start). "
            "Single skips are normal in mixed precision while the loss scale adapts."
        )
        if self.skipped_in_a_row >= self.max_skipped_in_a_row:
            raise SystemExit(
                f"Training stopped in epoch {self.current_epoch}: loss or gradient was not finite in "
                f"{self.skipped_in_a_row} consecutive steps. These steps did not change the weights, and the "
                f"checkpoints in {self.output_folder} are older. Likely causes: NaN, infinite or huge values in images "
                "(check with nnUNetv2_plan_and_preprocess --verify_dataset_integrity), labels other than 0, 1, 2 …, or "
                "a learning rate that is too high."
            )

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Leave non-finite losses out of the mean loss, and log their number."""
        losses = np.array([float(output["loss"]) for output in train_outputs])
        finite = np.isfinite(losses)
        if finite.any() and not finite.all():
            self.print_to_log_file(f"Skipped {(~finite).sum()} of {len(losses)} steps: their loss was not finite")
            # the number of entries must not change: under DDP, ranks stack their losses
            losses[~finite] = losses[finite].mean()
        super().on_train_epoch_end([{"loss": loss} for loss in losses])
