"""Draw the report's figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nnunet_mamba_mis.benchmark.evaluation.statistics import Comparison, Estimate
from nnunet_mamba_mis.benchmark.label_maps import Mask
from nnunet_mamba_mis.nnunet.logs import Epoch
from nnunet_mamba_mis.utils.figures import for_figure, plain_figures, save_figure
from nnunet_mamba_mis.utils.overlays import PREDICTION_COLOUR, TRUTH_COLOUR, legend_handles, outline, tile

# Okabe and Ito's palette, distinguishable with every kind of colour vision
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_GAIN, _LOSS = "#0072B2", "#D55E00"
_PANEL = 4.2
_MOST_MARKERS = 15
_COLUMNS = 3
# more models cannot be distinguished, and a figure of hundreds would exceed Agg's maximum size
MOST_MODELS = 12
MOST_CLASSES = 6
_TILE_INCHES = 2.2


@dataclass(frozen=True)
class Panel:
    """A case in the grid of overlays.

    Args:
        why: Reason why the case was selected.
        case: Its identifier.
        image: (H, W) or (H, W, 3) with 8 bits per channel.
        truth: Mask (H, W) of each class.
        predictions: Masks of each model, in the order of the columns.
        dice: Dice of each model.
    """

    why: str
    case: str
    image: NDArray[np.uint8]
    truth: Sequence[Mask]
    predictions: Sequence[Sequence[Mask]]
    dice: Sequence[float]


@plain_figures()
def draw_paired_differences(
    differences: Mapping[str, tuple[Comparison, Mapping[str, float]]], metric: str, baseline: str, file: Path
) -> None:
    """Draw each case's difference from the baseline, from the greatest loss to the greatest gain.

    Args:
        differences: Comparison of each other model with the baseline, and the difference of each case.
        metric: Name of the metric.
        baseline: Name of the baseline.
        file: PNG to write; an SVG is written beside it.
    """
    figure, axes = _panels(len(differences), share_y=True)
    for ax, (name, (comparison, by_case)) in zip(axes, differences.items(), strict=True):
        values = np.sort([value for value in by_case.values() if not np.isnan(value)])
        place = np.arange(1, len(values) + 1)
        colours = np.where(values > 0, _GAIN, np.where(values < 0, _LOSS, "0.6"))
        ax.vlines(place, 0, values, colors=colours, linewidth=max(0.5, min(4.0, 160 / max(1, len(values)))))
        ax.scatter(place, values, c=colours, s=max(2.0, min(18.0, 700 / max(1, len(values)))), zorder=3)
        mean = comparison.difference
        ax.axhspan(mean.low, mean.high, color="0.5", alpha=0.25, linewidth=0)
        ax.axhline(mean.mean, color="0.2", linewidth=1.2, linestyle="--")
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"{for_figure(name)}\nmean {mean.mean:+.3f} [{mean.low:+.3f}, {mean.high:+.3f}]", fontsize=9)
        ax.set_xlabel("cases, sorted by difference")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for ax in axes[::_COLUMNS]:
        ax.set_ylabel(f"{metric} minus that of\n{for_figure(baseline)}", fontsize=9)
    save_figure(figure, file, svg=True)


@plain_figures()
def draw_cost(dice: Mapping[str, Estimate], costs: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Draw mean Dice with its interval against each cost.

    Args:
        dice: Mean Dice of each model.
        costs: Kind of cost → model → number, for models whose cost is known.
        file: PNG to write; an SVG is written beside it.
    """
    figure, axes = _panels(len(costs), share_y=True)
    for ax, (kind, by_model) in zip(axes, costs.items(), strict=True):
        for index, (name, value) in enumerate(dice.items()):
            if np.isfinite(by_model.get(name, np.nan)):
                error = np.nan_to_num([[value.mean - value.low], [value.high - value.mean]])
                ax.errorbar(by_model[name], value.mean, error, capsize=3, **_style(index) | {"linestyle": ""})
        ax.set_xlabel(kind)
        ax.set_xlim(0, 1.1 * max(filter(np.isfinite, by_model.values()), default=0) or 1)
        ax.margins(y=0.12)
    for ax in axes[::_COLUMNS]:
        ax.set_ylabel("mean Dice with 95% interval")
    _legend_below(figure, enumerate(dice), linestyle="")
    save_figure(figure, file, svg=True)


@plain_figures()
def draw_reliability(
    curves: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]],
    names: Sequence[str],
    file: Path,
) -> None:
    """Draw the frequency of each class against its predicted probability.

    Args:
        curves: Class → model → mean probability and frequency of each bin.
        names: Names of the models, in the order of their colours.
        file: PNG to write; an SVG is written beside it.
    """
    figure, axes = _panels(len(curves), share_y=True)
    for ax, (name, by_model) in zip(axes, curves.items(), strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
        for index, model in enumerate(names):
            if model in by_model:
                ax.plot(*by_model[model], ms=4, **_style(index))
        ax.set_title(for_figure(name), fontsize=10)
        ax.set_xlabel("predicted probability")
        ax.set_aspect("equal")
    for ax in axes[::_COLUMNS]:
        ax.set_ylabel("frequency of the class")
    drawn = set().union(*curves.values())
    _legend_below(figure, [(index, name) for index, name in enumerate(names) if name in drawn])
    save_figure(figure, file, svg=True)


@plain_figures()
def draw_training_curves(epochs: Mapping[str, Sequence[Sequence[Epoch]]], file: Path) -> None:
    """Draw the validation loss and pseudo Dice of every fold, and their mean.

    Args:
        epochs: Epochs of each fold of each model.
        file: PNG to write; an SVG is written beside it.
    """
    figure, axes = _panels(2, share_y=False)
    titles = {"val_loss": "validation loss", "pseudo_dice": "pseudo Dice of the first class (validation patches)"}
    for ax, (quantity, title) in zip(axes, titles.items(), strict=True):
        for index, folds in enumerate(epochs.values()):
            style = _style(index)
            by_epoch: dict[int, list[float]] = {}
            for fold in folds:
                ax.plot(
                    [epoch.number + 1 for epoch in fold], [getattr(epoch, quantity) for epoch in fold],
                    color=style["color"], linestyle=style["linestyle"], linewidth=0.7, alpha=0.4,
                )  # fmt: skip
                for epoch in fold:
                    by_epoch.setdefault(epoch.number + 1, []).append(getattr(epoch, quantity))
            number = sorted(by_epoch)
            mean = [float(np.mean(by_epoch[n])) for n in number]
            if len(number) >= _MOST_MARKERS:
                style["marker"] = ""
            ax.plot(number, mean, linewidth=2, ms=4, **style)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_below(figure, enumerate(epochs))
    save_figure(figure, file, svg=True)


@plain_figures()
def draw_overlays(panels: Sequence[Panel], names: Sequence[str], file: Path) -> None:
    """Draw a row for each case, with ground truth and prediction of each model.

    Args:
        panels: The rows.
        names: Names of the models.
        file: PNG to write; an SVG is written beside it.
    """
    # in inches: a strip for the legend at the top, one for the reasons at the left, a title over each row, and a line
    # of model names
    legend, reasons, title, names_height = 0.4, 2.0, 0.3, 0.45
    sides = [panel.image.shape[0] / panel.image.shape[1] for panel in panels]
    heights = [_TILE_INCHES * min(2.0, max(0.3, side)) + title for side in sides]
    height, width = sum(heights) + legend + names_height, len(names) * _TILE_INCHES + reasons
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    figure.legend(handles=legend_handles(), loc="upper left", ncols=2, frameon=False, fontsize=9)
    for column, name in enumerate(names):
        x = (reasons + (column + 0.5) * _TILE_INCHES) / width
        figure.text(x, 1 - (legend + names_height) / height, for_figure(name, 24), ha="center", va="bottom", fontsize=9)
    bottom = height - legend - names_height
    for panel, row_height in zip(panels, heights, strict=True):
        bottom -= row_height
        middle = (bottom + (row_height - title) / 2) / height
        why = f"{for_figure(panel.why, 27)}\n\n{for_figure(panel.case, 27)}"
        figure.text((reasons - 0.1) / width, middle, why, ha="right", va="center", fontsize=8)
        picture, scale = tile(panel.image)
        for column, (masks, dice) in enumerate(zip(panel.predictions, panel.dice, strict=True)):
            left, size = reasons + column * _TILE_INCHES, (_TILE_INCHES - 0.06, row_height - title)
            ax = figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height))
            ax.set_axis_off()
            ax.set_anchor("N")
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
            for colour, outlined in ((TRUTH_COLOUR, panel.truth), (PREDICTION_COLOUR, masks)):
                for mask in outlined:
                    outline(ax, mask, scale, colour)
            ax.set_title("in neither" if np.isnan(dice) else f"Dice {dice:.3f}", fontsize=8, pad=3)
    save_figure(figure, file, svg=True)


def _panels(number: int, share_y: bool) -> tuple[Figure, Sequence[Any]]:
    # a Figure without pyplot draws with Agg, which needs no display
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


def _style(index: int) -> dict[str, Any]:
    """Return colour, marker and line style of a model, unique among MOST_MODELS."""
    colours = len(_COLOURS)
    marker = _MARKERS[(index + index // colours) % len(_MARKERS)]
    return {"color": _COLOURS[index % colours], "marker": marker, "linestyle": "--" if index >= colours else "-"}


def _legend_below(figure: Figure, names: Iterable[tuple[int, str]], **changed: Any) -> None:
    """Add a legend of models, each with the index of its style; `changed` overrides parts of the styles."""
    shown = dict(names)
    handles = [Line2D([], [], **_style(index) | changed) for index in shown]
    legend = figure.legend(
        handles, list(map(str, range(len(shown)))), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    # set afterwards, as matplotlib leaves out labels that begin with an underscore
    for text, name in zip(legend.get_texts(), shown.values(), strict=True):
        text.set_text(for_figure(name, 60))
