"""Find a dataset's folders in the layouts it is distributed in, and pair images with masks."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from filecmp import cmp
from functools import partial
from itertools import count
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.archive_formats import READABLE, UNREADABLE, ending
from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, Case, FoundCases
from nnunet_mamba_mis.dataset_conversion.problems import FOREIGN, MISSING, SAME_NAME, Problem
from nnunet_mamba_mis.dataset_conversion.tree import IMAGE_SUFFIXES, Tree, stem_match
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened

DOCUMENTS = frozenset({".txt", ".csv", ".md", ".pdf", ".json", ".xml", ".html"})

# optional suffix of a mask's stem: the number of a further mask
_NUMBER = r"(?:_(\d+))?"
_UNNUMBERED = -1


@dataclass(frozen=True)
class ImageSet:
    """A folder of images and a folder of their masks, as a dataset distributes them. Matching ignores case.

    Args:
        images: End of the path of the image folder, such as "TestDataset/Kvasir/images"; may contain "*".
        masks: End of the path of the mask folder.
        subset: "Tr" (required) or the name of a test set (optional).
        image_stem: Regular expression for an image's stem; its group is the part that image and mask share.
        mask_stem: Regular expression for a mask's stem; a second group numbers further masks of an image.
        others: Regular expression for the stems of files in these folders that are neither images nor masks.
        identifier: nnU-Net's case identifier, with {} for the shared part.
        several: Whether images or masks may be spread over several folders.
    """

    images: str
    masks: str
    subset: str = TRAINING
    image_stem: str = "(.+)"
    mask_stem: str = "(.+)"
    others: str = ""
    identifier: str = "{}"
    several: bool = False


def layouts(*alternatives: Sequence[ImageSet]) -> Callable[[Sequence[Path]], FoundCases]:
    """Return a function for `Dataset.find_cases` that finds the cases of a dataset with these layouts."""
    return partial(_find_pairs, alternatives=alternatives)


def _find_pairs(sources: Sequence[Path], alternatives: Sequence[Sequence[ImageSet]]) -> FoundCases:
    """Return the cases of the first layout whose training set exists.

    Args:
        sources: Folders to search. A set's folder may be one of them or lie at any depth below.
        alternatives: Layouts. If the sources match none, the error names the missing folders of the last layout.

    Raises:
        UserError: A folder is missing or exists twice.
    """
    tree = Tree(sources)
    layout = next((layout for layout in alternatives if _has_training_set(tree, layout)), alternatives[-1])
    found = FoundCases(tree.problems)
    for image_set in layout:
        images = tree.matching(image_set.images, image_set.image_stem)
        masks = tree.matching(image_set.masks, image_set.mask_stem)
        missing = [name for name, at in ((image_set.images, images), (image_set.masks, masks)) if not at]
        if len(missing) == 2 and image_set.subset != TRAINING:
            continue
        if missing:
            raise UserError(
                f"found no folder {' and no folder '.join(missing)} that contains images in "
                f"{', '.join(map(str, sources))}: expected {image_set.images} and {image_set.masks} "
                f"(`mamba_mis convert --list` describes each dataset's layout){_hint(tree)}"
            )
        if not image_set.several:
            images, masks = _at_most_one(images), _at_most_one(masks)
        _pair(tree, image_set, images, masks, found)
    return _sorted_and_checked(found)


def _hint(tree: Tree) -> str:
    """Return advice about archives that were found where folders are expected."""
    hint = ""
    for endings, advice in (
        (READABLE, "SOURCE contains archives. Give them with -i (if they are in other archives, unpack those first)"),
        (UNREADABLE, "SOURCE contains archives of a format that is not supported. Unpack them and give the folders"),
    ):
        if archives := [str(path) for paths in tree.values() for path in paths if ending(path, endings)]:
            hint += f". {advice}: {shortened(archives)}"
    return hint


def _has_training_set(tree: Tree, layout: Sequence[ImageSet]) -> bool:
    return all(
        tree.matching(image_set.images, image_set.image_stem) and tree.matching(image_set.masks, image_set.mask_stem)
        for image_set in layout
        if image_set.subset == TRAINING
    )


def find_in_folders(sources: Sequence[Path], stems: str = "{}:{}") -> FoundCases:
    """Return the cases of a folder of images and a folder of masks, or of folders that contain both.

    If the mask's stem has text after the shared part, an image may have further, numbered masks: 1_mask, 1_mask_1 and
    1_mask_2. A gap in the numbers means that a mask is missing.

    Args:
        sources: The images, then the masks, each with one folder of image files at any depth; or one source with both.
        stems: The stems of an image and its mask, with {} for the shared part, such as "img_{}:img_{}_mask".

    Raises:
        UserError: `stems` is malformed, or a source is not a single folder of images.
    """
    patterns = stems.split(":")
    if len(patterns) != 2 or any(pattern.count("{}") != 1 for pattern in patterns):
        raise UserError(
            f"--stems {stems!r}: expected IMAGE:MASK, each with {{}} for the part they share, such as {{}}:{{}}_mask"
        )
    image_stem, mask_stem = (re.escape(pattern).replace(r"\{\}", "(.+)") for pattern in patterns)
    if not patterns[1].endswith("{}"):
        mask_stem += _NUMBER
    image_set = ImageSet("*", "*", image_stem=image_stem, mask_stem=mask_stem)
    if len({source.resolve() for source in sources}) == 1:
        return _find_in_one_source(sources[0], image_set, stems)
    if len(sources) != 2:
        raise UserError(
            f"-i got {len(sources)} sources: give the images, then the masks (`-i IMAGES MASKS`), or one folder that "
            "contains both"
        )
    found, tree = FoundCases(), Tree([])
    places: list[list[Path]] = []
    for source in sources:
        below = Tree([source], allowed=sources)
        tree.update(below)
        found.problems += below.problems
        places.append(_at_most_one(_folders_of_images(below, source)))
    _pair(tree, image_set, places[0], places[1], found)
    return _sorted_and_checked(found)


def _find_in_one_source(source: Path, image_set: ImageSet, stems: str) -> FoundCases:
    """Return the cases of folders that contain both images and masks, which differ in their names."""
    if stems.endswith(":{}"):
        raise UserError(
            f"-i got one source, and --stems {stems!r} does not distinguish masks from images: give the images, then "
            "the masks (`-i IMAGES MASKS`), or describe the masks' names, as in --stems {}:{}_mask"
        )
    tree = Tree([source])
    found = FoundCases(tree.problems)
    folders = _folders_of_images(tree, source)
    used = Counter(stem for folder in folders for stem in {path.stem.casefold() for path in tree.images(folder)})
    if max(used.values()) == 1:
        _pair(tree, image_set, folders, folders, found)
    else:
        for folder in folders:
            place = os.path.relpath(folder, os.path.abspath(source))
            identifier = "{}" if place == os.curdir else f"{place}_{{}}"
            _pair(tree, replace(image_set, identifier=identifier), [folder], [folder], found)
    return _sorted_and_checked(found)


def _folders_of_images(tree: Tree, source: Path) -> list[Path]:
    folders = tree.matching("*", "(.+)")
    if not folders:
        raise UserError(f"found no folder that contains images in {source}{_hint(tree)}")
    return folders


def _at_most_one(folders: list[Path]) -> list[Path]:
    if len(folders) > 1:
        listed = shortened([str(folder) for folder in folders])
        raise UserError(f"found {len(folders)} folders for the same images: {listed}. Give only one of them with -i")
    return folders


def _sorted_and_checked(found: FoundCases) -> FoundCases:
    """Sort the cases, and report identifiers that are equal, or equal on some file systems."""
    known: dict[str, Case] = {}
    for case in sorted(found, key=lambda case: (case.identifier, case.subset)):
        first = known.setdefault(unicodedata.normalize("NFC", case.identifier.casefold()), case)
        if first is not case:
            text = f"{case.image} has the same case identifier as {first.image}"
            if first.identifier != case.identifier:
                text += f" on Windows and macOS ({case.identifier} and {first.identifier})"
            found.problems.append(Problem(SAME_NAME, text, case.identifier))
    found.sort(key=lambda case: (case.identifier, case.subset))
    return found


def _pair(tree: Tree, image_set: ImageSet, images: list[Path], masks: list[Path], found: FoundCases) -> None:
    """Pair images and masks by stem, never by position; add cases, unpaired files and foreign files to `found`."""
    masks_of = _by_key(tree, masks, image_set, image_set.mask_stem, found)
    not_stem = image_set.mask_stem if set(images) & set(masks) else ""
    images_of = _by_key(tree, images, image_set, image_set.image_stem, found, not_stem)
    _check_foreign(tree, image_set, images, masks, found)
    _match_case(images_of, masks_of)
    numbers = set().union(*masks_of.values())
    for key in sorted(images_of.keys() | masks_of.keys()):
        identifier = _identifier(image_set, key)
        if key not in masks_of:
            text = f"{_first(images_of[key])} has no mask {_example(image_set.mask_stem, key)}.* in {_common(masks)}"
            found.problems.append(Problem(MISSING, text, identifier))
        elif key not in images_of:
            text = f"{_first(masks_of[key])} has no image {_example(image_set.image_stem, key)}.* in {_common(images)}"
            found.problems.append(Problem(MISSING, text, identifier))
        elif (lost := _lost_number(masks_of[key].keys(), numbers)) is not None:
            example = _example(image_set.mask_stem, key) + ("" if lost == _UNNUMBERED else f"_{lost}")
            listed = shortened([path.name for path in masks_of[key].values()])
            text = f"{_first(images_of[key])} has no mask {example}.* in {_common(masks)}, only {listed}"
            found.problems.append(Problem(MISSING, text, identifier))
        else:
            mask, *further = masks_of[key].values()
            found.append(Case(identifier, _first(images_of[key]), mask, image_set.subset, tuple(further)))


def _first(numbered: dict[int, Path]) -> Path:
    return next(iter(numbered.values()))


def _lost_number(numbers: Collection[int], all_numbers: Collection[int]) -> int | None:
    """Return the first number that an image's masks lack, or None: numbers start as for other images, without gaps."""
    if _UNNUMBERED in all_numbers and _UNNUMBERED not in numbers:
        return _UNNUMBERED
    first = min((number for number in all_numbers if number != _UNNUMBERED), default=0)
    # do not loop up to the largest number, which may be huge
    lost = next(number for number in count(first) if number not in numbers)
    return lost if lost < max(numbers) else None


def _by_key(
    tree: Tree,
    folders: list[Path],
    image_set: ImageSet,
    stem: str,
    found: FoundCases,
    not_stem: str = "",
) -> dict[str, dict[int, Path]]:
    """Return the files of each key (shared part of stems) by number, and report files with equal key and number.

    Args:
        tree: The source folders.
        folders: Folders to read.
        image_set: The naming rule.
        stem: Regular expression for stems to include.
        found: Receives the problems.
        not_stem: Regular expression for stems to exclude.
    """
    files: dict[str, dict[int, Path]] = {}
    for folder in folders:
        for path in tree.images(folder):
            match = stem_match(stem, path)
            if match and not stem_match(not_stem, path):
                # macOS decomposes accented letters
                key = unicodedata.normalize("NFC", match[1])
                number = _UNNUMBERED if match.lastindex == 1 else int(match[2])
                same = files.setdefault(key, {})
                # Kaggle distributes HAM10000's folders twice, in upper and lower case
                first = same.setdefault(number, path)
                if first is not path and not cmp(path, first, shallow=False):
                    text = f"{path} has the same case identifier as {first}"
                    found.problems.append(Problem(SAME_NAME, text, _identifier(image_set, key)))
    return {key: dict(sorted(same.items())) for key, same in files.items()}


def _match_case(images_of: dict[str, dict[int, Path]], masks_of: dict[str, dict[int, Path]]) -> None:
    """Give an unpaired mask the key of an unpaired image if the two differ only in upper and lower case."""
    # not casefold(), which makes ß equal to ss
    free = {key.lower(): key for key in sorted(images_of.keys() - masks_of.keys())}
    for key in sorted(masks_of.keys() - images_of.keys()):
        if key.lower() in free:
            masks_of[free.pop(key.lower())] = masks_of.pop(key)


def _check_foreign(tree: Tree, image_set: ImageSet, images: list[Path], masks: list[Path], found: FoundCases) -> None:
    known: dict[Path, list[str]] = {}
    for folders, stem in ((images, image_set.image_stem), (masks, image_set.mask_stem)):
        for folder in folders:
            known.setdefault(folder, [image_set.others]).append(stem)
    for folder, stems in known.items():
        for path in tree[folder]:
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                if path.suffix.lower() not in DOCUMENTS:
                    found.problems.append(Problem(FOREIGN, f"{path} is neither an image nor a document"))
            elif not any(stem_match(stem, path) for stem in stems):
                found.problems.append(Problem(FOREIGN, f"{path} is not named like an image or mask of this set"))


def _example(stem: str, key: str) -> str:
    before, after = re.split(r"\(.+?\)", stem.removesuffix(_NUMBER), maxsplit=1)
    return re.sub(r"\\(.)", r"\1", before) + key + re.sub(r"\\(.)", r"\1", after)


def _common(folders: list[Path]) -> Path:
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))


def _identifier(image_set: ImageSet, key: str) -> str:
    # keep only characters that every file system accepts
    return re.sub(r"[^\w.-]", "_", image_set.identifier.replace("{}", key))
