"""nnU-Net's trainer, with exact resume after a stop at any step."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
import torch.distributed as dist

from nnunet_mamba_mis.nnunet.checkpoint import Training, on_one_line, read_checkpoint, without_code
from nnunet_mamba_mis.trainers.base import ConfiguredTrainer
from nnunet_mamba_mis.trainers.random_state import get_random_state, set_random_state
from nnunet_mamba_mis.trainers.resume_record import RANDOM_STATE, RESUME, check_log, is_alike, recorded_progress
from nnunet_mamba_mis.trainers.stop_request import StopRequest
from nnunet_mamba_mis.utils.atomic_write import SUFFIX as PARTIAL
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError


class ResumableTrainer(ConfiguredTrainer):
    """nnU-Net's trainer, but `--c` resumes exactly where training stopped.

    The trainer writes `checkpoint_latest.pth` after every epoch (`save_every`), and mid-epoch on SIGTERM or Ctrl-C.
    Checkpoints have nnU-Net's format. Everything else that an exact resume needs is in the optimizer's state, where
    nnU-Net and torch ignore it: the state of the random number generators, and the attributes in `kept`. These are the
    outputs of the steps of a partial epoch, and whatever subclasses add.
    """

    # attributes that a checkpoint keeps in addition to nnU-Net's
    kept: ClassVar[tuple[str, ...]] = ("train_outputs", "val_outputs")
    save_every = 1
    is_continued = False
    # state of the generators to restore before the next step, if any
    random_state: dict[str, Any] | None = None

    def initialize(self) -> None:
        """Initialize, and make the optimizer's state carry what an exact resume needs."""
        super().initialize()
        self.train_outputs: list[dict] = []
        self.val_outputs: list[dict] = []
        self.stop_request = StopRequest(spawned=self.is_ddp)
        # records of all processes, for the next checkpoint
        self.progress: list[dict[str, Any]] = []
        # one function of nnU-Net composes and writes checkpoints; outside it, only optimizer state can be extended
        self.optimizer.register_state_dict_post_hook(lambda _, state: state | {RESUME: self.progress})

    def run_training(self) -> None:
        """Run nnU-Net's loop; SIGTERM or Ctrl-C ends it after the step in progress, with a checkpoint.

        Raises:
            SystemExit: A signal ended training; the status is 128 + the signal's number, as shells report it.
        """
        self.on_train_start()
        with self.stop_request:
            for _ in range(self.current_epoch, self.num_epochs):
                self._run_epoch()
            self.on_train_end()
            if number := self._stop_signal():
                self._leave(number, "after the last epoch; --c continues with the validation")

    def _run_epoch(self) -> None:
        """Run one epoch, or the rest of one that was stopped."""
        if not self.train_outputs:
            self._restore_random_state()
        self.on_epoch_start()
        self.on_train_epoch_start()
        self._take_steps(self.train_step, self.dataloader_train, self.train_outputs, self.num_iterations_per_epoch)
        self.on_train_epoch_end(self.train_outputs)
        self._validate_epoch()
        self.train_outputs, self.val_outputs = [], []
        self.on_epoch_end()

    @torch.no_grad()
    def _validate_epoch(self) -> None:
        self.on_validation_epoch_start()
        steps = self.num_val_iterations_per_epoch
        self._take_steps(self.validation_step, self.dataloader_val, self.val_outputs, steps)
        self.on_validation_epoch_end(self.val_outputs)

    def _take_steps(self, step: Callable[[dict], dict], batches: Iterator[dict], outputs: list, count: int) -> None:
        """Run steps until `outputs` has `count` entries."""
        while len(outputs) < count:
            # not earlier: in an uninterrupted run, the hooks before this step have already drawn random numbers
            self._restore_random_state()
            before = get_random_state(self.device)
            batch = self._draw(batches)
            if number := self._stop_signal():
                self.random_state = before
                self._stop(number)
            assert batch is not None
            outputs.append(step(batch))

    def _draw(self, batches: Iterator[dict]) -> dict | None:
        """Return the next batch, or None if a signal came first: it may have ended the data loader's workers, too."""
        if self.stop_request.signal:
            return None
        try:
            return next(batches)
        except RuntimeError:
            if self.stop_request.signal:
                return None
            raise

    def _stop_signal(self) -> int:
        """Return the number of the signal that any process received, or 0: all must stop after the same step."""
        if not self.is_ddp:
            return self.stop_request.signal
        number = torch.tensor(self.stop_request.signal, device=self.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number.item())

    def _stop(self, number: int) -> NoReturn:
        self._save_latest()
        if self.is_ddp:
            dist.barrier()  # torch ends all processes when the first one exits
        done = f"{len(self.train_outputs)} of {self.num_iterations_per_epoch} steps"
        if self.val_outputs:
            done = "its training steps"
        way_on = "nothing was saved: checkpointing is disabled" if self.disable_checkpointing else "continue with --c"
        self._leave(number, f"in epoch {self.current_epoch} after {done}; {way_on}")

    def _leave(self, number: int, where: str) -> NoReturn:
        if self.local_rank == 0:
            self.print_to_log_file(f"Stopped by {signal.Signals(number).name} {where}")
        raise SystemExit(128 + number)

    def on_train_start(self) -> None:
        """Start training, and set checkpoints of an earlier run aside: otherwise `--c` could resume from them."""
        super().on_train_start()
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        folder = Path(self.output_folder)
        if self.fold_lock:  # no other process is writing them
            for leftover in folder.glob(f"checkpoint_*.pth*{PARTIAL}"):
                leftover.unlink()
        if not self.is_continued:
            self._set_aside([folder / f"checkpoint_{name}.pth" for name in ("final", "latest", "best")])

    def _set_aside(self, checkpoints: list[Path]) -> None:
        """Rename existing checkpoints; all get the first number that is free for all, so nothing is overwritten."""
        numbered = ([path.with_stem(f"{path.stem}_previous_{n}") for path in checkpoints] for n in count(1))
        free = next(paths for paths in numbered if not any(path.exists() for path in paths))
        for checkpoint, path in zip(checkpoints, free, strict=True):
            if checkpoint.exists():
                checkpoint.rename(path)
                self.print_to_log_file(f"Renamed {checkpoint.name} of an earlier run to {path.name}")

    def on_epoch_end(self) -> None:
        """End the epoch, but write `checkpoint_latest.pth` last: nnU-Net writes it before it updates the best Dice."""
        save_every, self.save_every = self.save_every, sys.maxsize
        super().on_epoch_end()
        self.save_every = save_every
        if self.current_epoch % save_every == 0 and self.current_epoch < self.num_epochs:
            self._save_latest()

    def _save_latest(self) -> None:
        self.current_epoch -= 1  # nnU-Net stores current_epoch + 1 as the next epoch
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        self.current_epoch += 1

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint, with what an exact resume needs, atomically.

        Args:
            filename: The file to write.

        Raises:
            SystemExit: The file could not be written.
        """
        if self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing, and logs that
            return
        random_state = self.random_state or get_random_state(self.device)
        progress = {RANDOM_STATE: random_state} | {name: getattr(self, name) for name in self.kept}
        self.progress = [progress]
        if self.is_ddp:
            self.progress *= dist.get_world_size()
            dist.all_gather_object(self.progress, progress)
        if self.local_rank != 0:
            return
        try:
            with self.stop_request.deferred(), atomic_write(filename) as file:
                super().save_checkpoint(file)  # type: ignore[arg-type]
        except OSError as error:
            raise SystemExit(
                f"Training stopped: {filename} could not be written ({error}). "
                "The previous file is unchanged: solve the problem, then continue with --c"
            ) from error

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint, with the random state and the partial epoch's outputs if the world size matches.

        No code in the file is run, and its content is checked first.

        Args:
            filename_or_checkpoint: The file. nnU-Net's annotation also allows a dict, which nnU-Net's code cannot load.

        Raises:
            SystemExit: The file is not a training checkpoint, or belongs to another network or optimizer.
        """
        path = str(filename_or_checkpoint)
        if not self.was_initialized:
            self.initialize()
        try:
            checkpoint = read_checkpoint(path, Training)
            processes = dist.get_world_size() if self.is_ddp else 1
            current = {name: getattr(self, name) for name in self.kept}
            progress = recorded_progress(checkpoint, path, self.local_rank, processes, current, self.device)
            check_log(checkpoint, path, self.logger.get_checkpoint())
            self._load_fitting(checkpoint, path)
        except UserError as error:
            raise SystemExit(f"{error}. Move the file away to let --c resume from another checkpoint") from None
        self.is_continued = True
        # a stopped epoch logs its values again when it is resumed
        for values in self.logger.get_checkpoint().values():
            del values[self.current_epoch :]
        self.random_state = progress.pop(RANDOM_STATE, None)
        for name, value in progress.items():
            setattr(self, name, value)

    def _load_fitting(self, checkpoint: Training, path: str) -> None:
        try:
            with without_code():
                super().load_checkpoint(path)
        except torch.OutOfMemoryError:
            raise
        # what torch raises for the weights of another network, and the state of another optimizer
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not fit {type(self).__name__}: {on_one_line(str(error))}") from error
        for group in self.optimizer.param_groups:
            for name, default in self.optimizer.defaults.items():
                if name not in group or not is_alike(group[name], default):
                    kind = type(self.optimizer).__name__
                    raise UserError(f"{path} has no usable {name} for {kind} in optimizer_state.param_groups")

    def _restore_random_state(self) -> None:
        if self.random_state is not None:
            set_random_state(self.random_state, self.device)
            self.random_state = None
