"""The demo's results, as a table on the console and as report.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from nnunet_mamba_mis.demo.running import Step
from nnunet_mamba_mis.demo.scoring import Scores, Summary
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.text import code_block, counted, duration, for_markdown, markdown_table, one_line

_MOST_ROWS = 24
_NAME_WIDTH = 40


class FinishedStep(NamedTuple):
    """A finished step and its duration in seconds."""

    step: Step
    seconds: float


def console_table(scores: Scores, summary: Summary) -> str:
    """Return the scores, worst to best, as text of at most 100 columns; long lists are shortened in the middle."""
    width = min(_NAME_WIDTH, max(map(len, scores), default=5))
    rows = []
    for identifier, counts in scores.items():
        identifier = one_line(identifier)
        name = identifier if len(identifier) <= width else f"{identifier[: width - 1]}…"
        cells = "no polyp in the image, none found" if counts.both_empty else f"{counts.dice:.3f}  {counts.iou:.3f}"
        rows.append(f"  {name:<{width}}  {cells}")
    if len(rows) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        rows = [*rows[:half], f"  … {len(rows) - 2 * half} more in report.md …", *rows[-half:]]
    mean = (
        f"Dice {summary.dice_mean:.3f} ± {summary.dice_sd:.3f}, IoU {summary.iou_mean:.3f} ± {summary.iou_sd:.3f} "
        f"({summary.images - summary.both_empty} images)"
    )
    lines = [f"  {'image':<{width}}   Dice    IoU", *rows, f"  {'mean ± SD':<{width}}  {mean}"]
    if summary.both_empty:
        lines.append(f"  {_both_empty_text(summary)}")
    return "\n".join(lines)


def write_report(
    file: Path,
    data: str,
    device: str,
    preparation: Sequence[str],
    steps: Sequence[FinishedStep],
    scores: Scores,
    summary: Summary,
    missing: Sequence[str] = (),
) -> None:
    """Write report.md, with the pictures beside it: overlays.png and training_curve.png.

    Args:
        file: Path of report.md.
        data: Description of the images, as a sentence.
        device: Description of the device.
        preparation: Shell lines that set the environment of the commands.
        steps: Finished steps in order.
        scores: Scores, worst to best.
        summary: Summary of the scores.
        missing: Descriptions of what the pictures lack.
    """
    where = for_markdown(device)
    total = duration(sum(step.seconds for step in steps))
    packages = ", ".join(f"{name} {version(name)}" for name in ("nnunet-mamba-mis", "nnunetv2", "torch"))
    times = [(finished.step.title, duration(finished.seconds)) for finished in steps]
    pictures = {
        "overlays.png": "Outlines on the unseen images",
        "training_curve.png": "Losses and pseudo Dice by epoch",
    }
    shown = [f"![{text}]({name})" for name, text in pictures.items() if file.with_name(name).is_file()]
    shown += [f"- ⚠ {for_markdown(line)}" for line in missing]
    text = f"""# Mamba-MIS demo

Mean Dice **{summary.dice_mean:.3f}** on {summary.images} images not used for training, after {total} on {where}.

{for_markdown(data)}

The demo shows that the installation works and how to use it. Its training is far too short to judge the network.

{chr(10).join(shown)}

## Scores on the unseen images

{_scores_table(scores, summary)}

## Commands

{packages}, Python {platform.python_version()}, {platform.system()}.

{markdown_table(("step", "time"), times)}

The output of each command is in `logs/`. To run the same commands yourself in a shell:

{_script(preparation, steps)}
"""
    with atomic_write(file) as output:
        output.write(text.encode(errors="backslashreplace"))


def _both_empty_text(summary: Summary) -> str:
    return f"not in the mean: {counted(summary.both_empty, 'image')} without a polyp, where none was found"


def _scores_table(scores: Scores, summary: Summary) -> str:
    rows = []
    for name, counts in scores.items():
        cells = ("no polyp", "none found") if counts.both_empty else (f"{counts.dice:.3f}", f"{counts.iou:.3f}")
        rows.append((for_markdown(name), *cells))
    dice = f"**{summary.dice_mean:.3f} ± {summary.dice_sd:.3f}**"
    iou = f"**{summary.iou_mean:.3f} ± {summary.iou_sd:.3f}**"
    rows.append(("**mean ± SD**", dice, iou))
    table = markdown_table(("image", "Dice", "IoU"), rows)
    return f"{table}\n\n{_both_empty_text(summary).capitalize()}." if summary.both_empty else table


def _script(preparation: Sequence[str], steps: Sequence[FinishedStep]) -> str:
    lines = list(preparation)
    for step, _ in steps:
        lines += ["", *(f"# {line}" for line in step.remark.splitlines()), step.as_typed()]
    return code_block("\n".join(lines), "bash")
