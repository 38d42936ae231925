"""What a dataset and a case are to the converters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.errors import UserError

TRAINING = "Tr"

_MAX_LISTED = 10


@dataclass(frozen=True)
class Case:
    """An image and its mask.

    Args:
        identifier: nnU-Net's case identifier; unique within the dataset.
        image: the image as distributed.
        mask: the mask as distributed.
        subset: "Tr", or the name of a test set.
    """

    identifier: str
    image: Path
    mask: Path
    subset: str = TRAINING


@dataclass(frozen=True)
class Dataset:
    """A public dataset that `mamba_mis convert` can read.

    Args:
        name: its name on the command line.
        folder_name: the default of --name, what follows "Dataset027_".
        title: what it is, in a few words.
        num_images: how many images the official download holds, as text.
        layout: what SOURCE must hold, as text.
        labels: nnU-Net's labels, background included.
        reference: the publication and the download page.
        licence: the licence, or the terms of use in a few words.
        find_cases: takes the SOURCE folders, returns the cases or raises UserError.
    """

    name: str
    folder_name: str
    title: str
    num_images: str
    layout: str
    labels: Mapping[str, int]
    reference: str
    licence: str
    find_cases: Callable[[Sequence[Path]], list[Case]]


def bad_files_error(problems: Sequence[str]) -> UserError:
    """Return the one error that reports all unusable files of a source.

    Args:
        problems: one text for each file, which starts with its path.
    """
    if len(problems) == 1:
        return UserError(f"{problems[0]}. Download the file again, or remove the image together with its mask.")
    lines = [f"  {problem}" for problem in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f"  and {len(problems) - _MAX_LISTED} more")
    way_out = "Download these files again, or remove each image together with its mask."
    return UserError("\n".join([f"{len(problems)} files cannot be used:", *lines, way_out]))
