"""Run the demo from start to finish."""

from __future__ import annotations

import platform
import shlex
import shutil
import time
from functools import partial
from pathlib import Path

import torch

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.demo.folder import SYNTHETIC, check_folder, start_afresh
from nnunet_mamba_mis.demo.pictures import draw_overlays, draw_training_curve
from nnunet_mamba_mis.demo.report import FinishedStep, console_table, write_report
from nnunet_mamba_mis.demo.running import Step, run_step
from nnunet_mamba_mis.demo.scoring import score_folders, summarize
from nnunet_mamba_mis.demo.steps import convert_step, plan_step, predict_step, train_step
from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set
from nnunet_mamba_mis.demo.workplace import TRAINER, Workplace
from nnunet_mamba_mis.nnunet.logs import read_training_logs
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.figures import try_to_draw
from nnunet_mamba_mis.utils.subprocesses import count_cores, find_executable
from nnunet_mamba_mis.utils.text import duration, one_line

SYNTHETIC_IMAGES = 108
SYNTHETIC_UNSEEN = 12
# nnU-Net splits the training images into five folds
_FEWEST_TRAINING_IMAGES = 5
_MOST_UNSEEN = 100


def run_demo(folder: Path, source: Path | None, device: str | None) -> None:
    """Check the arguments, then run all steps and write the report.

    Args:
        folder: The output folder; it is created, or the results of an earlier demo in it are removed.
        source: Folder of Kvasir-SEG, which stays unchanged, or None for a synthetic dataset.
        device: "cpu" or "cuda"; None for the GPU if there is one, else the CPU.

    Raises:
        UserError: An argument is invalid, and nothing was changed; or a step failed.
    """
    check_folder(folder, source)
    hold_out = SYNTHETIC_UNSEEN if source is None else _number_to_hold_out(source)
    for command in ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"):
        find_executable(command)
    name = "SyntheticPolyps" if source is None else "KvasirSEG"
    place = Workplace(folder.absolute(), name, _usable_device(device), count_cores())
    lock = start_afresh(place.folder)  # noqa: F841 (held until the end)
    _run(place, None if source is None else source.absolute(), hold_out)


def _number_to_hold_out(source: Path) -> int:
    """Return how many images of a source to hold out for testing: a tenth.

    Raises:
        UserError: The source does not have the layout of Kvasir-SEG, or has too few images.
    """
    images = len(DATASETS["kvasir-seg"].find_cases([source]))
    hold_out = max(1, min(_MOST_UNSEEN, images // 10))
    if images - hold_out < _FEWEST_TRAINING_IMAGES:
        raise UserError(f"{source} has {images} images, but the demo needs at least {_FEWEST_TRAINING_IMAGES + 1}")
    return hold_out


def _usable_device(requested: str | None) -> str:
    """Return the device to use, "cpu" or "cuda"; by default the GPU if there is one.

    Raises:
        UserError: A GPU is requested, but none is usable.
    """
    has_gpu = torch.cuda.is_available()
    if requested == "cuda" and not has_gpu:
        raise UserError(
            "-device cuda: no usable CUDA device was found (run `mamba_mis doctor` for the reason): use -device cpu"
        )
    return requested or ("cuda" if has_gpu else "cpu")


def _run(place: Workplace, source: Path | None, hold_out: int) -> None:
    start = time.monotonic()
    environment = place.environment()
    device = _describe_device(place)
    print(f"{one_line(f'Mamba-MIS demo on {device}, with all output in {place.folder}')}\n")
    if source is None:
        source = place.folder / SYNTHETIC
        data = f"{SYNTHETIC_IMAGES} synthetic images of polyps, drawn by the demo; {hold_out} are held out for testing."
        print(
            f"Drawing {SYNTHETIC_IMAGES} synthetic images of polyps in Kvasir-SEG's layout: {one_line(str(source))}\n",
            flush=True,
        )
        write_synthetic_set(source, SYNTHETIC_IMAGES)
    else:
        data = f"Images of {source}; {hold_out} are held out for testing."
    preparation = shell_preparation(environment)
    print("To run the following commands in your own shell, start with:")
    print("\n".join(one_line(f"  $ {line}") for line in preparation))

    finished: list[FinishedStep] = []

    def run(step: Step) -> None:
        print(f"\n[{len(finished) + 1}/5] {step.title}")
        seconds = run_step(step, place.folder / "logs" / f"{step.name}.log", environment)
        finished.append(FinishedStep(step, seconds))

    run(convert_step(place, source, hold_out))
    run(plan_step(place))
    run(train_step(place, getattr(trainers, TRAINER).epochs))
    run(predict_step(place))

    print("\n[5/5] Score the unseen images (means are over images)", flush=True)
    labels, images = place.raw / "labelsTs", place.raw / "imagesTs"
    scores = score_folders(labels, place.predictions)
    summary = summarize(scores)
    print(console_table(scores, summary))
    overlays = place.folder / "overlays.png"
    report = partial(write_report, place.folder / "report.md", data, device, preparation, finished, scores, summary)
    # the report is written once before the pictures are drawn, as drawing may fail
    report()
    missing = try_to_draw(partial(draw_overlays, scores, images, labels, place.predictions), overlays)
    missing += try_to_draw(
        lambda file: draw_training_curve(read_training_logs(place.fold), file), place.folder / "training_curve.png"
    )
    report(missing)

    print(f"\nDone in {duration(time.monotonic() - start)}; report.md has all results. To use your own images, convert")
    print("them (see mamba_mis convert --list), then run the commands above with -tr nnUNetTrainerMambaMIS.")
    print(f"Mean Dice {summary.dice_mean:.3f} on {summary.images} unseen images; pictures in {one_line(str(overlays))}")


def shell_preparation(environment: dict[str, str]) -> list[str]:
    """Return the shell lines that set the environment of the commands."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    script = find_executable("nnUNetv2_train")
    if shutil.which("nnUNetv2_train") != script:
        # the virtual environment is not activated
        lines.insert(0, f'export PATH="{Path(script).parent}:$PATH"')
    return lines


def _describe_device(place: Workplace) -> str:
    if place.device == "cuda":
        return f"a GPU ({torch.cuda.get_device_name()})"
    return f"a CPU ({place.cores} cores, {platform.machine()})"
