"""Find a dataset's folders below SOURCE and pair their images with their masks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.base import TRAINING, Case, bad_files_error
from nnunet_mamba_mis.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageSet:
    """A folder of images and the folder of their masks, as a dataset distributes them.

    Args:
        images: name of the folder that holds the images.
        masks: name of the folder that holds the masks.
        subset: "Tr" (must be there) or the name of a test set (may be absent).
        mask_ending: what a mask's stem has after its image's stem.
        not_images: stems that end so, if not empty, are something else in the folder of images.
    """

    images: str
    masks: str
    subset: str = TRAINING
    mask_ending: str = ""
    not_images: str = ""


def find_pairs(sources: Sequence[Path], sets: Sequence[ImageSet]) -> list[Case]:
    """Return the cases of those sets that are present.

    Args:
        sources: folders; the sets' folders may be these themselves or lie at any depth below them.
        sets: what to look for.

    Raises:
        UserError: a source is no folder, a folder is missing or there twice, or an image or mask is alone.
    """
    found = _image_folders(sources, {name for image_set in sets for name in (image_set.images, image_set.masks)})
    where = ", ".join(str(source) for source in sources)
    cases: list[Case] = []
    problems: list[str] = []
    for image_set in sets:
        names = (image_set.images, image_set.masks)
        missing = [name for name in names if not found[name]]
        if missing == list(names) and image_set.subset != TRAINING:
            continue
        if missing:
            raise UserError(
                f"found no folder {' and no folder '.join(missing)} with images in it below {where}: expected "
                f"{image_set.images} and {image_set.masks} (`mamba_mis convert --list` describes each dataset's layout)"
            )
        images, masks = (_only(found[name]) for name in names)
        cases += _pair(image_set, images, masks, problems)
    if problems:
        raise bad_files_error(problems)
    return cases


def _image_folders(sources: Sequence[Path], names: set[str]) -> dict[str, list[Path]]:
    """Find all folders of these names that hold an image, so that Name/Name/*.jpg counts once."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    for folder in _walk(sources):
        if folder.name in found and _image_files(folder):
            found[folder.name].append(folder)
    return found


def _walk(sources: Sequence[Path]) -> Iterator[Path]:
    # links are followed, as datasets often lie on another disk; no folder is visited twice, however it is reached
    visited: set[str] = set()
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist: -i takes the folder the dataset was unpacked to")
        if not source.is_dir():
            raise UserError(f"{source} is not a folder: unpack it and give the folder with -i")
        for root, subfolders, _ in os.walk(os.path.abspath(source), followlinks=True):
            real = os.path.realpath(root)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
            yield Path(root)


def _image_files(folder: Path) -> list[Path]:
    # a leading dot: macOS puts ._ISIC_0000000.jpg, which is no image, beside ISIC_0000000.jpg
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _only(folders: list[Path]) -> Path:
    if len(folders) > 1:
        listed = " and ".join(str(folder) for folder in folders)
        raise UserError(f"found {len(folders)} folders for the same images: {listed}. Give with -i only the one to use")
    return folders[0]


def _pair(image_set: ImageSet, images: Path, masks: Path, problems: list[str]) -> list[Case]:
    """Pair by stem, never by position, and add to problems what has no partner."""
    image_of: dict[str, Path] = {}
    mask_of: dict[str, Path] = {}
    for path in _image_files(images):
        if not (image_set.not_images and path.stem.endswith(image_set.not_images)):
            _add(image_of, path.stem, path, problems)
    for path in _image_files(masks):
        if path.stem.endswith(image_set.mask_ending):
            _add(mask_of, path.stem.removesuffix(image_set.mask_ending), path, problems)
        else:
            problems.append(f"{path} is not named like a mask: expected <image>{image_set.mask_ending}{path.suffix}")
    problems += [
        f"{image_of[identifier]} has no mask {identifier}{image_set.mask_ending}.* in {masks}"
        for identifier in sorted(image_of.keys() - mask_of.keys())
    ]
    problems += [
        f"{mask_of[identifier]} has no image {identifier}.* in {images}"
        for identifier in sorted(mask_of.keys() - image_of.keys())
    ]
    return [
        Case(identifier, image_of[identifier], mask_of[identifier], image_set.subset)
        for identifier in sorted(image_of.keys() & mask_of.keys())
    ]


def _add(files: dict[str, Path], identifier: str, path: Path, problems: list[str]) -> None:
    if identifier in files:
        problems.append(f"{path} has the same case identifier as {files[identifier]}")
    files[identifier] = path
