"""What the demo found, as a table on the console and as report.md."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nnunet_mamba_mis.demo.scoring import Score, Summary
from nnunet_mamba_mis.demo.steps import Step, as_typed, duration

_MOST_ROWS = 24
_NAME_WIDTH = 40


@dataclass(frozen=True)
class RunStep:
    """A step that has run, and the seconds it took."""

    step: Step
    seconds: float


def console_table(scores: Sequence[Score], summary: Summary) -> str:
    """Return the scores, worst to best, as text of at most 100 columns; only both ends of a long list."""
    width = min(_NAME_WIDTH, max((len(score.identifier) for score in scores), default=5))
    lines = [f"  {'image':<{width}}   Dice    IoU"]
    rows = [f"  {_shortened(score.identifier):<{width}}  {_cells(score)}" for score in scores]
    if len(rows) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        rows = [*rows[:half], f"  … {len(rows) - 2 * half} more in report.md …", *rows[-half:]]
    lines += rows
    lines.append(f"  {'mean ± SD':<{width}}  {_mean_line(summary)}")
    if summary.both_empty:
        lines.append(f"  {_both_empty_text(summary)}")
    return "\n".join(lines)


def write_report(
    file: Path,
    data: str,
    device: str,
    preparation: Sequence[str],
    steps: Sequence[RunStep],
    scores: Sequence[Score],
    summary: Summary,
) -> None:
    """Write report.md, which expects overlays.png and training_curve.png beside it.

    Args:
        file: report.md.
        data: what was segmented, as a sentence.
        device: what it ran on, in words.
        preparation: lines that set what the commands need in a shell.
        steps: in the order they ran.
        scores: worst to best.
        summary: of the scores.
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("nnunet-mamba-mis", "nnunetv2", "torch"))
    total = duration(sum(run.seconds for run in steps))
    parts = [
        "# Mamba-MIS demo",
        f"Mean Dice **{summary.dice_mean:.3f}** on {summary.images} images that training never saw, after {total} "
        f"on {device}.",
        f"{data}\n\nThis shows that everything works and how it is used. It trains far too briefly to say how good the "
        "network is.",
        "![Outlines on the unseen images](overlays.png)",
        "![Losses and pseudo Dice per epoch](training_curve.png)",
        "## Scores on the unseen images",
        _markdown_table(scores, summary),
        "## What was run",
        f"{packages}, Python {platform.python_version()}, {platform.system()}.",
        _markdown_steps(steps),
        "The output of each command is in `logs/`. The same by hand, in a shell:",
        _script(preparation, steps),
    ]
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def exports(environment: Mapping[str, str]) -> list[str]:
    """Return lines that set the variables in a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"


def _cells(score: Score) -> str:
    return f"{score.dice:.3f}  {score.iou:.3f}" if score.defined else "no polyp in the image, none found"


def _mean_line(summary: Summary) -> str:
    return (
        f"Dice {summary.dice_mean:.3f} ± {summary.dice_sd:.3f}, IoU {summary.iou_mean:.3f} ± {summary.iou_sd:.3f} "
        f"({summary.images - summary.both_empty} images)"
    )


def _both_empty_text(summary: Summary) -> str:
    return f"not in the mean: {summary.both_empty} without polyp, where none was found"


def _markdown_table(scores: Sequence[Score], summary: Summary) -> str:
    lines = ["| image | Dice | IoU |", "| --- | ---: | ---: |"]
    for score in scores:
        cells = f"{score.dice:.3f} | {score.iou:.3f}" if score.defined else "no polyp | none found"
        lines.append(f"| {score.identifier} | {cells} |")
    lines.append(
        f"| **mean ± SD** | **{summary.dice_mean:.3f} ± {summary.dice_sd:.3f}** | "
        f"**{summary.iou_mean:.3f} ± {summary.iou_sd:.3f}** |"
    )
    if summary.both_empty:
        lines.append(f"\n{_both_empty_text(summary).capitalize()}.")
    return "\n".join(lines)


def _markdown_steps(steps: Sequence[RunStep]) -> str:
    lines = ["| step | time |", "| --- | ---: |"]
    lines += [f"| {run.step.title} | {duration(run.seconds)} |" for run in steps]
    return "\n".join(lines)


def _script(preparation: Sequence[str], steps: Sequence[RunStep]) -> str:
    lines = list(preparation)
    for run in steps:
        lines.append("")
        lines += [f"# {line}" for line in run.step.remark.splitlines()]
        lines.append(as_typed(run.step))
    return "\n".join(["```bash", *lines, "```"])
