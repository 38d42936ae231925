"""nnU-Net's trainer, made to continue where it was stopped."""

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
    """nnU-Net's trainer, but `--c` resumes exactly where training was stopped.

    `checkpoint_latest.pth` is written after every epoch (`save_every`), and in the middle of one on SIGTERM or Ctrl-C.
    Checkpoints are nnU-Net's. What they lack, the state of the random number generators and what the steps of the epoch
    in progress have returned so far, is added to the optimizer's state, where nnU-Net and torch ignore it.
    """

    # attributes, beside those of nnU-Net, that a checkpoint keeps
    kept: ClassVar[tuple[str, ...]] = ("train_outputs", "val_outputs")
    save_every = 1
    is_continued = False
    # where the generators have to be set to before the next step, if anywhere
    random_state: dict[str, Any] | None = None

    def initialize(self) -> None:
        """Also let the optimizer's state carry what exact continuation takes."""
        super().initialize()
        self.train_outputs: list[dict] = []
        self.val_outputs: list[dict] = []
        self.stop_request = StopRequest(spawned=self.is_ddp)
        # of all processes, as the next checkpoint keeps it
        self.progress: list[dict[str, Any]] = []
        # nnU-Net composes and writes a checkpoint in one function; of its parts this one can be added to from outside
        self.optimizer.register_state_dict_post_hook(lambda _, state: state | {RESUME: self.progress})

    def run_training(self) -> None:
        """nnU-Net's loop; SIGTERM or Ctrl-C ends it when the step in progress is done, with a checkpoint.

        Raises:
            SystemExit: with 128 + the signal's number, as shells report it.
        """
        self.on_train_start()
        with self.stop_request:
            for _ in range(self.current_epoch, self.num_epochs):
                self._run_epoch()
            self.on_train_end()
            if number := self._stop_signal():
                self._leave(number, "when training was done; --c continues with the validation")

    def _run_epoch(self) -> None:
        """One epoch, or what a stop has left of it."""
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
            # not earlier: in an uninterrupted training the hooks before had drawn already
            self._restore_random_state()
            before = get_random_state(self.device)
            batch = self._draw(batches)
            if number := self._stop_signal():
                self.random_state = before
                self._stop(number)
            assert batch is not None
            outputs.append(step(batch))

    def _draw(self, batches: Iterator[dict]) -> dict | None:
        """The next batch, or None where a signal came first, which may have ended the data loader's workers too."""
        if self.stop_request.signal:
            return None
        try:
            return next(batches)
        except RuntimeError:
            if self.stop_request.signal:
                return None
            raise

    def _stop_signal(self) -> int:
        """Number of the signal that any of the processes got, or 0: all must stop after the same step, or none."""
        if not self.is_ddp:
            return self.stop_request.signal
        number = torch.tensor(self.stop_request.signal, device=self.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number.item())

    def _stop(self, number: int) -> NoReturn:
        self._save_latest()
        if self.is_ddp:
            dist.barrier()  # torch ends all processes when the first has left
        done = f"{len(self.train_outputs)} of {self.num_iterations_per_epoch} steps"
        if self.val_outputs:
            done = "its training steps"
        kept = "nothing was saved, as checkpointing is disabled" if self.disable_checkpointing else "continue with --c"
        self._leave(number, f"in epoch {self.current_epoch} after {done}; {kept}")

    def _leave(self, number: int, where: str) -> NoReturn:
        if self.local_rank == 0:
            self.print_to_log_file(f"Stopped by {signal.Signals(number).name} {where}")
        raise SystemExit(128 + number)

    def on_train_start(self) -> None:
        """Also set checkpoints of an earlier training aside, or `--c` could take them for this one's."""
        super().on_train_start()
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        folder = Path(self.output_folder)
        if self.fold_lock:  # so that no other process writes them
            for leftover in folder.glob(f"checkpoint_*.pth*{PARTIAL}"):
                leftover.unlink()
        if not self.is_continued:
            self._set_aside([folder / f"checkpoint_{name}.pth" for name in ("final", "latest", "best")])

    def _set_aside(self, checkpoints: list[Path]) -> None:
        """Rename those that are there, all to the first number that none has: none is ever replaced."""
        numbered = ([path.with_stem(f"{path.stem}_previous_{n}") for path in checkpoints] for n in count(1))
        free = next(paths for paths in numbered if not any(path.exists() for path in paths))
        for checkpoint, path in zip(checkpoints, free, strict=True):
            if checkpoint.exists():
                checkpoint.rename(path)
                self.print_to_log_file(f"An earlier training's {checkpoint.name} is now {path.name}")

    def on_epoch_end(self) -> None:
        """As nnU-Net, but write `checkpoint_latest.pth` last: nnU-Net's lacks the best EMA of the same epoch."""
        save_every, self.save_every = self.save_every, sys.maxsize
        super().on_epoch_end()
        self.save_every = save_every
        if self.current_epoch % save_every == 0 and self.current_epoch < self.num_epochs:
            self._save_latest()

    def _save_latest(self) -> None:
        self.current_epoch -= 1  # nnU-Net stores the epoch after it as the next one
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        self.current_epoch += 1

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint, with what exact continuation takes beside it, atomically.

        Args:
            filename: Where to write it.

        Raises:
            SystemExit: It could not be written.
        """
        if self.disable_checkpointing:
            super().save_checkpoint(filename)  # writes nothing, and says so
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
                "The previous file is unchanged; continue with --c when the cause is gone"
            ) from error

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Also restore the random state and the partial epoch's outputs, if the world size matches.

        Nothing in the file is run, and what it holds is checked first.

        Args:
            filename_or_checkpoint: The file; nnU-Net's annotation has a dict too, which its code cannot take.

        Raises:
            SystemExit: The file is not a training checkpoint, or of another network or optimizer.
        """
        path = str(filename_or_checkpoint)
        if not self.was_initialized:
            self.initialize()
        try:
            checkpoint = read_checkpoint(path, Training)
            processes = dist.get_world_size() if self.is_ddp else 1
            present = {name: getattr(self, name) for name in self.kept}
            progress = recorded_progress(checkpoint, path, self.local_rank, processes, present, self.device)
            check_log(checkpoint, path, self.logger.get_checkpoint())
            self._load_fitting(checkpoint, path)
        except UserError as error:
            raise SystemExit(f"{error}. Without this file, --c takes the next best checkpoint: move it away") from None
        self.is_continued = True
        # what a stopped epoch has logged it logs again
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
        # what torch raises for other weights, and for another optimizer's state
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not fit {type(self).__name__}: {on_one_line(str(error))}") from error
        for group in self.optimizer.param_groups:
            for name, default in self.optimizer.defaults.items():
                if name not in group or not is_alike(group[name], default):
                    kind = type(self.optimizer).__name__
                    raise UserError(f"{path} has an optimizer_state with no usable {name} in param_groups, for {kind}")

    def _restore_random_state(self) -> None:
        if self.random_state is not None:
            set_random_state(self.random_state, self.device)
            self.random_state = None
