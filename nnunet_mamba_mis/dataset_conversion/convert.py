"""Write a dataset into nnUNet_raw."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.dataset_conversion.base import TRAINING, Case, Dataset, bad_files_error
from nnunet_mamba_mis.dataset_conversion.images import case_problems, convert_case, use_one_thread
from nnunet_mamba_mis.errors import UserError

# never "Dataset…": nnU-Net would take a half-written folder for a dataset
_STAGING_PREFIX = ".converting_"

# a running conversion writes a file every few seconds, so a folder as old as this was left by one that was killed
_LEFTOVER_AFTER_SECONDS = 3600

# case, PNG of the image, PNG of the label map
_Job = tuple[Case, Path, Path]


def default_processes() -> int:
    """Return the number of processes to convert with, if none is given."""
    return min(8, os.cpu_count() or 1)


def convert_dataset(
    dataset: Dataset,
    sources: Sequence[Path],
    dataset_id: int,
    name: str | None = None,
    processes: int | None = None,
    hold_out: int = 0,
) -> Path:
    """Convert a dataset into nnU-Net's raw format and return its new folder in nnUNet_raw.

    Everything that can be checked without decoding pixels is checked before anything is written, and the folder
    appears under its name only when it is complete.

    Args:
        dataset: one of `DATASETS`.
        sources: folders that hold the dataset as distributed, at any depth.
        dataset_id: 1 to 999; no dataset of nnU-Net's may have it yet.
        name: what follows "Dataset027_" in the folder's name; default: the dataset's own.
        processes: how many cases to convert at a time; with 1 no process is started. The result is the same.
        hold_out: so many training cases, spread evenly over their sorted identifiers, become a test set.

    Raises:
        UserError: an argument, a file of the source or nnUNet_raw is unusable; nothing is left in nnUNet_raw.
    """
    processes = default_processes() if processes is None else processes
    if processes < 1:
        raise UserError(f"-np {processes}: the number of processes must be at least 1")
    target = _target_folder(dataset_id, dataset.folder_name if name is None else name)
    cases = sorted(dataset.find_cases(sources), key=lambda case: case.identifier)
    _check_cases(cases)
    cases = _hold_out(cases, hold_out)
    with _staging_folder(target) as staging:
        problems = _convert_cases(cases, staging, processes)
        if problems:
            raise bad_files_error(problems)
        _write_dataset_json(dataset, target.name.split("_", 1)[1], cases, staging)
    return target


def _target_folder(dataset_id: int, name: str) -> Path:
    raw = os.environ.get("nnUNet_raw")
    if not raw:
        raise UserError("nnUNet_raw is not set: `export nnUNet_raw=/path` to the folder for nnU-Net's raw datasets")
    if not 1 <= dataset_id <= 999:
        raise UserError(f"-d {dataset_id}: a dataset id must lie between 1 and 999")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--name {name!r}: use letters, digits, - and _ only")
    _check_id_is_free(dataset_id)
    return Path(raw) / f"Dataset{dataset_id:03d}_{name}"


def _check_id_is_free(dataset_id: int) -> None:
    # nnU-Net finds a dataset's name from its id in all three
    used: dict[int, Path] = {}
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        if os.environ.get(variable):
            for folder in sorted(Path(os.environ[variable]).glob("Dataset[0-9][0-9][0-9]_*")):
                if folder.is_dir():
                    used.setdefault(int(folder.name[7:10]), folder)
    if dataset_id in used:
        free = next((i for i in [*range(dataset_id, 1000), *range(1, dataset_id)] if i not in used), None)
        suggestion = f"-d {free} is free" if free else "remove a dataset, all ids are in use"
        raise UserError(f"dataset id {dataset_id} is in use by {used[dataset_id]}: {suggestion}")


def _check_cases(cases: list[Case]) -> None:
    problems = []
    first: dict[str, Case] = {}
    for case in cases:
        if first.setdefault(case.identifier, case) is not case:
            same = first[case.identifier].image
            problems.append(f"{case.image} has the same case identifier as {same}")
    for case in tqdm(cases, desc="Checking", unit="case", disable=None, leave=False):
        problems += case_problems(case)
    if problems:
        raise bad_files_error(problems)


def _hold_out(cases: list[Case], number: int) -> list[Case]:
    training = [case for case in cases if case.subset == TRAINING]
    if not 0 <= number < len(training):
        raise UserError(f"cannot hold out {number} of {len(training)} training cases")
    held_out = {training[(2 * i + 1) * len(training) // (2 * number)] for i in range(number)}
    return [replace(case, subset="holdout") if case in held_out else case for case in cases]


@contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside the target, which becomes the target at the end or, on an error, disappears."""
    # the name is new each time, so what a killed run left is never in the way
    staging = target.with_name(f"{_STAGING_PREFIX}{target.name}_{uuid.uuid4().hex[:8]}")
    try:
        _remove_leftovers(target.parent)
        staging.mkdir(parents=True)
        yield staging
        # someone else may have taken the id meanwhile
        _check_id_is_free(int(target.name[7:10]))
        staging.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}. Nothing was converted") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_leftovers(raw: Path) -> None:
    for folder in raw.glob(f"{_STAGING_PREFIX}*"):
        # it may vanish while we look, if it is that of a run about to end
        with suppress(OSError):
            last_change = max(path.stat().st_mtime for path in [folder, *folder.glob("*")])
            if time.time() - last_change > _LEFTOVER_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _convert_cases(cases: list[Case], staging: Path, processes: int) -> list[str]:
    test_sets = {case.subset for case in cases} - {TRAINING}
    suffixes = {subset: "Ts" if len(test_sets) == 1 else f"Ts_{subset}" for subset in test_sets} | {TRAINING: TRAINING}
    jobs: list[_Job] = []
    for suffix in suffixes.values():
        (staging / f"images{suffix}").mkdir()
        (staging / f"labels{suffix}").mkdir()
    for case in cases:
        image_file = staging / f"images{suffixes[case.subset]}" / f"{case.identifier}_0000.png"
        label_file = staging / f"labels{suffixes[case.subset]}" / f"{case.identifier}.png"
        jobs.append((case, image_file, label_file))
    # all are tried even if one is bad: who downloads a file again wants to know of the other bad ones too
    with _results(jobs, min(processes, len(jobs))) as results:
        progress = tqdm(results, total=len(jobs), desc="Converting", unit="case", disable=None)
        return [problem for problem in progress if problem]


@contextmanager
def _results(jobs: list[_Job], processes: int) -> Iterator[Iterator[str | None]]:
    """Give the outcome of each job in order, as it comes."""
    if processes == 1:
        yield map(_convert, jobs)
        return
    # spawn: a forked child can inherit a lock that a thread of its parent holds
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _initialize_worker)
    try:
        with _interrupts_blocked():
            results = pool.map(_convert, jobs)
        yield results
    except BrokenProcessPool:
        raise UserError("a worker process was killed, perhaps for want of memory: try a smaller -np") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _convert(job: _Job) -> str | None:
    return convert_case(*job)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never get it, so that only this one answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _initialize_worker() -> None:
    # the processes share the cores among them already
    use_one_thread()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # else the workers of a parent that was killed would wait for work for ever
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_dataset_json(dataset: Dataset, name: str, cases: list[Case], folder: Path) -> None:
    # not with nnU-Net's generate_dataset_json, which puts the release into "citation"
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": dict(dataset.labels),
        "numTraining": sum(case.subset == TRAINING for case in cases),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": name,
        "description": dataset.title,
        "reference": dataset.reference,
        "licence": dataset.licence,
        "converted_by": f"nnunet-mamba-mis {__version__}",
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
