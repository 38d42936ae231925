"""Read, score and compare results, and write the report."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_mamba_mis.benchmark.evaluation.evaluate import Costs, evaluate_datasets
from nnunet_mamba_mis.benchmark.model import Model
from nnunet_mamba_mis.nnunet.paths import folder_if_set, not_set
from nnunet_mamba_mis.utils.atomic_write import atomic_write
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import for_terminal

if TYPE_CHECKING:
    from nnunet_mamba_mis.benchmark.reporting.document import Block


def make_report(
    datasets: Sequence[str],
    roots: Sequence[Path] | None,
    trainers: Sequence[str] | None,
    output: Path,
    tolerance: float,
    processes: int = 1,
    measure: Callable[[str, Sequence[Model]], Costs] | None = None,
    overlays: bool = True,
) -> None:
    """Write cases.csv, report.md and report.html, then figures; a figure that fails becomes a warning in the report.

    Args:
        datasets: Ids or names of datasets.
        roots: Folders like nnUNet_results; nnUNet_results itself by default.
        trainers: Trainers to compare, the baseline first; all by default.
        output: Folder to write; other files in it are kept.
        tolerance: Tolerance of the normalised surface Dice, in units of the spacing.
        processes: Number of processes for scoring.
        measure: Function that takes a dataset and its models, and returns costs that are not in the logs.
        overlays: Whether to draw pictures of cases.

    Raises:
        UserError: Results are missing or contradictory, or the folder cannot be written to.
    """
    _check_options(tolerance, processes)
    _check_packages()
    # imported here, as these modules need the packages that were just checked
    from nnunet_mamba_mis.benchmark.reporting.case_table import cases_csv
    from nnunet_mamba_mis.benchmark.reporting.document import Heading
    from nnunet_mamba_mis.benchmark.reporting.sections import dataset_sections, introduction

    roots = roots or _default_roots()
    _check_folders(roots, output)
    evaluations = evaluate_datasets(datasets, roots, trainers, tolerance, processes, measure)
    title = "Benchmark: " + ", ".join(evaluation.validated.truth.name for evaluation in evaluations)
    _write({"cases.csv": cases_csv(part for evaluation in evaluations for part in evaluation.all)}, output)
    blocks: list[Block] = [Heading(1, title), *introduction(tolerance)]
    for evaluation in evaluations:
        blocks += dataset_sections(evaluation, output, overlays)
    # the pages are written once before the figures are drawn, as drawing may fail or take long
    _write_pages(title, _without_pictures(blocks), output)
    _write_pages(title, list(_with_pictures(blocks)), output)
    print(for_terminal(f"Wrote {output / 'report.html'}, report.md and cases.csv"))


def _without_pictures(blocks: Sequence[Block]) -> list[Block]:
    from nnunet_mamba_mis.benchmark.reporting.document import Picture, Text

    return [Text(f"{block.file.name} is not yet drawn.") if isinstance(block, Picture) else block for block in blocks]


def _with_pictures(blocks: Sequence[Block]) -> Iterator[Block]:
    """Draw pictures, and add a warning for anything that cannot be drawn."""
    from nnunet_mamba_mis.benchmark.reporting.document import Picture, Warnings
    from nnunet_mamba_mis.utils.figures import try_to_draw

    for block in blocks:
        problems = try_to_draw(block.draw, block.file) if isinstance(block, Picture) else []
        if not isinstance(block, Picture) or block.file.is_file():
            yield block
        yield Warnings(problems)


def _write_pages(title: str, blocks: Sequence[Block], output: Path) -> None:
    from nnunet_mamba_mis.benchmark.reporting.document import to_html, to_markdown

    _write({"report.md": to_markdown(blocks), "report.html": to_html(title, blocks)}, output)


def _write(contents: Mapping[str, str], output: Path) -> None:
    for name, content in contents.items():
        try:
            with atomic_write(output / name) as file:
                # the content names files, whose names may contain bytes that are not valid text
                file.write(content.encode(errors="backslashreplace"))
        except OSError as error:
            raise UserError(f"{output / name} cannot be written: {error.strerror or error}") from None


def _check_options(tolerance: float, processes: int) -> None:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"--tolerance {tolerance:g}: the distance must be finite and at least 0")
    if processes < 1:
        raise UserError(f"-np {processes}: the number of processes must be at least 1")


def _check_packages() -> None:
    missing = [name for name in ("monai", "jinja2", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the report needs {' and '.join(missing)}: pip install 'nnunet-mamba-mis[benchmark]'")


def _default_roots() -> list[Path]:
    results = folder_if_set("nnUNet_results")
    if results is None:
        raise UserError(f"{not_set('nnUNet_results')}\n  or give folders with --results")
    return [results]


def _check_folders(roots: Sequence[Path], output: Path) -> None:
    for root in roots:
        if not root.is_dir():
            raise UserError(f"--results {root}: the folder does not exist; give folders like nnUNet_results")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {output}: the folder cannot be created: {error.strerror}") from None
