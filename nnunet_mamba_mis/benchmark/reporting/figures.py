"""The report's figures, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from nnunet_mamba_mis.benchmark.evaluation.statistics import Comparison, Estimate
from nnunet_mamba_mis.benchmark.label_maps import Mask
from nnunet_mamba_mis.nnunet.logs import Epoch
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.overlays import PREDICTION_COLOUR, TRUTH_COLOUR, legend_handles, outline, tile

# of Okabe and Ito, apart for every kind of colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_GAIN, _LOSS = "#0072B2", "#D55E00"
_PANEL = 4.2
_COLUMNS = 3
_TILE_INCHES = 2.2


@dataclass(frozen=True)
class Panel:
    """A case in the grid of overlays.

    Args:
        why: What it was chosen for.
        case: Its identifier.
        image: (H, W) or (H, W, 3) of 8 bits.
        truth: Masks of the classes, (H, W).
        predictions: Of each model in the columns' order, masks of the classes.
        dice: Of each model.
    """

    why: str
    case: str
    image: NDArray[np.uint8]
    truth: Sequence[Mask]
    predictions: Sequence[Sequence[Mask]]
    dice: Sequence[float]


def draw_paired_differences(
    differences: Mapping[str, tuple[Comparison, Mapping[str, float]]], metric: str, baseline: str, file: Path
) -> Path:
    """Draw each case's difference to the baseline, from the greatest loss to the greatest gain.

    Args:
        differences: For each other model, the comparison and the difference of each case.
        metric: Its name.
        baseline: Name of the model that is compared with.
        file: The PNG to write; an SVG goes beside it.
    """
    figure, axes = _panels(len(differences), share_y=True)
    for ax, (name, (comparison, by_case)) in zip(axes, differences.items(), strict=True):
        values = np.sort([value for value in by_case.values() if not np.isnan(value)])
        place = np.arange(1, len(values) + 1)
        colours = np.where(values > 0, _GAIN, np.where(values < 0, _LOSS, "0.6"))
        ax.vlines(place, 0, values, colors=colours, linewidth=max(0.5, min(4.0, 160 / len(values))))
        ax.scatter(place, values, c=colours, s=max(2.0, min(18.0, 700 / len(values))), zorder=3)
        mean = comparison.difference
        ax.axhspan(mean.low, mean.high, color="0.5", alpha=0.25, linewidth=0)
        ax.axhline(mean.mean, color="0.2", linewidth=1.2, linestyle="--")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"{_wrapped(name)}\nmean {mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]", fontsize=9)
        ax.set_xlabel("cases, in the order of the difference")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[::_COLUMNS]:
        ax.set_ylabel(f"{metric}, less that of\n{_wrapped(baseline)}", fontsize=9)
    return _save(figure, file)


def draw_cost(dice: Mapping[str, Estimate], costs: Mapping[str, Mapping[str, float]], file: Path) -> Path:
    """Draw mean Dice with its interval against each cost.

    Args:
        dice: Of each model.
        costs: For each kind of cost, the cost of models of which it is known.
        file: The PNG to write; an SVG goes beside it.
    """
    figure, axes = _panels(len(costs), share_y=True)
    for ax, (kind, by_model) in zip(axes, costs.items(), strict=True):
        for index, (name, value) in enumerate(dice.items()):
            if name not in by_model:
                continue
            error = np.nan_to_num([[value.mean - value.low], [value.high - value.mean]])
            ax.errorbar(
                by_model[name], value.mean, error, fmt=_MARKERS[index % len(_MARKERS)], label=name, capsize=3,
                color=_COLOURS[index % len(_COLOURS)],
            )  # fmt: skip
        ax.set_xlabel(kind)
        ax.set_xlim(0, 1.1 * max(by_model.values()) or 1)
        ax.margins(y=0.12)
    for ax in axes[::_COLUMNS]:
        ax.set_ylabel("mean Dice, 95% interval")
    _legend_below(figure, axes[0])
    return _save(figure, file)


def draw_training_curves(epochs: Mapping[str, Sequence[Sequence[Epoch]]], file: Path) -> Path:
    """Draw validation loss and pseudo Dice of every fold, and their mean.

    Args:
        epochs: Of each model, of each fold.
        file: The PNG to write; an SVG goes beside it.
    """
    figure, axes = _panels(2, share_y=False)
    titles = {"val_loss": "validation loss", "pseudo_dice": "pseudo Dice of the first class (validation patches)"}
    for ax, (quantity, title) in zip(axes, titles.items(), strict=True):
        for index, (name, folds) in enumerate(epochs.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            by_epoch: dict[int, list[float]] = {}
            for fold in folds:
                ax.plot(
                    [epoch.number + 1 for epoch in fold], [getattr(epoch, quantity) for epoch in fold],
                    color=colour, linewidth=0.7, alpha=0.4,
                )  # fmt: skip
                for epoch in fold:
                    by_epoch.setdefault(epoch.number + 1, []).append(getattr(epoch, quantity))
            number = sorted(by_epoch)
            mean = [float(np.mean(by_epoch[n])) for n in number]
            ax.plot(number, mean, color=colour, linewidth=2, marker="o" if len(number) < 15 else "", ms=4, label=name)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(figure, axes[0])
    return _save(figure, file)


def draw_overlays(panels: Sequence[Panel], names: Sequence[str], file: Path) -> Path:
    """Draw a row for each case: the ground truth with the prediction of each model.

    Args:
        panels: The rows.
        names: Of the models.
        file: The PNG to write; an SVG goes beside it.
    """
    # in inches: a strip for the legend above, one for the reasons at the left, and a title over each row
    legend, reasons, title, names_height = 0.4, 2.0, 0.3, 0.45
    heights = [_TILE_INCHES * min(2.0, panel.image.shape[0] / panel.image.shape[1]) + title for panel in panels]
    height, width = sum(heights) + legend + names_height, len(names) * _TILE_INCHES + reasons
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    figure.legend(handles=legend_handles(), loc="upper left", ncols=2, frameon=False, fontsize=9)
    for column, name in enumerate(names):
        x = (reasons + (column + 0.5) * _TILE_INCHES) / width
        figure.text(x, 1 - (legend + names_height) / height, _wrapped(name, 24), ha="center", va="bottom", fontsize=9)
    bottom = height - legend - names_height
    for panel, row_height in zip(panels, heights, strict=True):
        bottom -= row_height
        middle = (bottom + (row_height - title) / 2) / height
        why = f"{_wrapped(panel.why, 30)}\n\n{_wrapped(panel.case, 30)}"
        figure.text((reasons - 0.1) / width, middle, why, ha="right", va="center", fontsize=8)
        picture, scale = tile(Image.fromarray(panel.image))
        for column, (masks, dice) in enumerate(zip(panel.predictions, panel.dice, strict=True)):
            left, size = reasons + column * _TILE_INCHES, (_TILE_INCHES - 0.06, row_height - title)
            ax = figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))
            ax.set_axis_off()
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
            for colour, outlined in ((TRUTH_COLOUR, panel.truth), (PREDICTION_COLOUR, masks)):
                for mask in outlined:
                    outline(ax, mask, scale, colour)
            ax.set_title("in neither" if np.isnan(dice) else f"Dice {dice:.3f}", fontsize=8, pad=3)
    return _save(figure, file)


def _panels(number: int, share_y: bool) -> tuple[Figure, Sequence[Any]]:
    # a Figure of its own draws with Agg: needs no display, leaves pyplot alone
    columns = min(number, _COLUMNS)
    rows = -(-number // columns)
    size = (max(1.4, columns) * _PANEL, 3.9 * rows)
    figure = Figure(figsize=size, dpi=130, facecolor="white", layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for empty in axes[number:]:
        empty.remove()
    axes = axes[:number]
    for ax in axes:
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend_below(figure: Figure, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _wrapped(text: str, width: int = 34) -> str:
    """Break long names, which have no spaces, after underscores."""
    lines = [""]
    for word in text.replace("_", "_\0").replace(" ", " \0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _save(figure: Figure, file: Path) -> Path:
    """Write PNG and SVG; the same figure gives the same bytes."""
    with atomic_write(file) as png:
        figure.savefig(png, format="png")
    with mpl.rc_context({"svg.hashsalt": file.stem}), atomic_write(file.with_suffix(".svg")) as svg:
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return file
