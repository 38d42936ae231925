"""The demo from beginning to end."""

from __future__ import annotations

import platform
import shutil
import time
from pathlib import Path

import torch

from nnunet_mamba_mis import trainers
from nnunet_mamba_mis.demo.folder import SYNTHETIC
from nnunet_mamba_mis.demo.nnunet_steps import (
    TRAINER,
    Workplace,
    convert_step,
    plan_step,
    predict_step,
    train_step,
)
from nnunet_mamba_mis.demo.pictures import draw_overlays, draw_training_curve
from nnunet_mamba_mis.demo.report import RunStep, console_table, exports, write_report
from nnunet_mamba_mis.demo.scoring import score_folders, summarize
from nnunet_mamba_mis.demo.steps import Step, duration, find_executable, run_step
from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set
from nnunet_mamba_mis.nnunet.logs import read_training_logs

SYNTHETIC_IMAGES = 108
SYNTHETIC_UNSEEN = 12


def run_demo(place: Workplace, source: Path | None, hold_out: int | None) -> None:
    """Run all steps and report.

    Args:
        place: where; its folder has just been made or emptied.
        source: Kvasir-SEG, or None for a synthetic set.
        hold_out: how many of the source's images to keep apart; ignored without a source.

    Raises:
        UserError: a step failed.
    """
    start = time.monotonic()
    environment = place.environment()
    device = _device_in_words(place)
    epochs = getattr(trainers, TRAINER).epochs
    print(f"Mamba-MIS demo on {device}, everything in {place.folder}\n")
    if source is None:
        source, hold_out = place.folder / SYNTHETIC, SYNTHETIC_UNSEEN
        data = f"{SYNTHETIC_IMAGES} synthetic images of polyps, drawn by the demo, {hold_out} of them kept apart."
        print(f"Drawing {SYNTHETIC_IMAGES} synthetic images of polyps in Kvasir-SEG's layout: {source}\n", flush=True)
        write_synthetic_set(source, SYNTHETIC_IMAGES)
    else:
        assert hold_out is not None
        data = f"Images of {source}, {hold_out} of them kept apart."
    print("To run the commands that follow in a shell of your own, start with:")
    print("\n".join(f"  $ {line}" for line in _exports(environment)))

    runner = _Runner(place.folder / "logs", environment)
    runner.run(convert_step(place, source, hold_out))
    runner.run(plan_step(place))
    runner.run(train_step(place, epochs))
    runner.run(predict_step(place))

    print("\n[5/5] Score the unseen images (the mean is over images)", flush=True)
    labels, images = place.raw / "labelsTs", place.raw / "imagesTs"
    scores = score_folders(labels, place.predictions)
    summary = summarize(scores)
    print(console_table(scores, summary))
    draw_overlays(scores, images, labels, place.predictions, place.folder / "overlays.png")
    draw_training_curve(read_training_logs(place.fold), place.folder / "training_curve.png")
    write_report(place.folder / "report.md", data, device, _exports(environment), runner.done, scores, summary)

    print(f"\nDone in {duration(time.monotonic() - start)}; everything is in report.md. With your own images:")
    print("convert them (mamba_mis convert --list), then the commands above with -tr nnUNetTrainerMambaMIS.")
    overlays = place.folder / "overlays.png"
    print(f"Mean Dice {summary.dice_mean:.3f} on {summary.images} unseen images; pictures in {overlays}")


class _Runner:
    """Number, run and remember steps."""

    def __init__(self, logs: Path, environment: dict[str, str]):
        self.logs = logs
        self.environment = environment
        self.done: list[RunStep] = []

    def run(self, step: Step) -> None:
        print(f"\n[{len(self.done) + 1}/5] {step.title}")
        seconds = run_step(step, self.logs / f"{step.name}.log", self.environment)
        self.done.append(RunStep(step, seconds))


def _exports(environment: dict[str, str]) -> list[str]:
    lines = exports(environment)
    script = find_executable("nnUNetv2_train")
    if shutil.which("nnUNetv2_train") != script:
        # the environment is not activated
        lines.insert(0, f'export PATH="{Path(script).parent}:$PATH"')
    return lines


def _device_in_words(place: Workplace) -> str:
    if place.device == "cuda":
        return f"a GPU ({torch.cuda.get_device_name()})"
    return f"a CPU ({place.cores} cores, {platform.machine()})"
