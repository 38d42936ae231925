"""The layouts that datasets are distributed in: find their folders and pair images with masks."""

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

# what may follow a mask's stem: the number of a further mask
_NUMBER = r"(?:_(\d+))?"
_UNNUMBERED = -1


@dataclass(frozen=True)
class ImageSet:
    """A folder of images and the folder of their masks, as a dataset distributes them; names in any case.

    Args:
        images: End of the path of the folder with the images, such as "TestDataset/Kvasir/images"; may hold "*".
        masks: The same of the masks.
        subset: "Tr" (must be there) or the name of a test set (may be absent).
        image_stem: Regular expression of an image's stem; its group is what image and mask share.
        mask_stem: The same of a mask's stem; a second group numbers the further masks of an image.
        others: Regular expression of stems that lie among them but are neither.
        identifier: nnU-Net's case identifier, with {} for what image and mask share.
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
    """Return what finds the cases of a dataset that is distributed in these layouts, for `Dataset.find_cases`."""
    return partial(_find_pairs, alternatives=alternatives)


def _find_pairs(sources: Sequence[Path], alternatives: Sequence[Sequence[ImageSet]]) -> FoundCases:
    """Return the cases of the first layout whose training set is there.

    Args:
        sources: Folders; the sets' folders may be these themselves or lie at any depth below them.
        alternatives: Layouts; a source that follows none of them is reported as lacking folders of the last.

    Raises:
        UserError: A folder is missing or there twice.
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
                f"found no folder {' and no folder '.join(missing)} with images in it below "
                f"{', '.join(map(str, sources))}: expected {image_set.images} and {image_set.masks} "
                f"(`mamba_mis convert --list` describes each dataset's layout){_hint(tree)}"
            )
        if not image_set.several:
            images, masks = _only(images), _only(masks)
        _pair(tree, image_set, images, masks, found)
    return _settle(found)


def _hint(tree: Tree) -> str:
    """Return what to do about the archives that lie where folders are expected."""
    hint = ""
    for endings, advice in (
        (READABLE, "Archives lie there. Give them with -i, unpacked first if they lie in others"),
        (UNREADABLE, "Archives lie there that cannot be read here. Unpack them and give the folders"),
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
    """Return the cases of a folder of images and a folder of masks, or of folders that hold both.

    Where a mask's stem has text after what is shared, further masks of an image may follow it by number: beside
    1_mask, 1_mask_1 and 1_mask_2. A number that is left out is a lost mask.

    Args:
        sources: Images and masks, each a single folder of images at any depth; or one source, at any depth.
        stems: The stem of an image and that of its mask, with {} for what both share, such as "img_{}:img_{}_mask".

    Raises:
        UserError: Stems is malformed, or a source is not one folder of images.
    """
    patterns = stems.split(":")
    if len(patterns) != 2 or any(pattern.count("{}") != 1 for pattern in patterns):
        raise UserError(
            f"--stems {stems!r}: expected IMAGE:MASK, each with a {{}} for what they share, as {{}}:{{}}_mask"
        )
    image_stem, mask_stem = (re.escape(pattern).replace(r"\{\}", "(.+)") for pattern in patterns)
    if not patterns[1].endswith("{}"):
        mask_stem += _NUMBER
    image_set = ImageSet("*", "*", image_stem=image_stem, mask_stem=mask_stem)
    if len({source.resolve() for source in sources}) == 1:
        return _find_in_one_source(sources[0], image_set, stems)
    if len(sources) != 2:
        raise UserError(
            f"-i got {len(sources)} SOURCE: give the images and then the masks, `-i IMAGES MASKS`, or a "
            "folder that holds both"
        )
    found, tree = FoundCases(), Tree([])
    places: list[list[Path]] = []
    for source in sources:
        below = Tree([source], allowed=sources)
        tree.update(below)
        found.problems += below.problems
        places.append(_only(_folders_of_images(below, source)))
    _pair(tree, image_set, places[0], places[1], found)
    return _settle(found)


def _find_in_one_source(source: Path, image_set: ImageSet, stems: str) -> FoundCases:
    """Return the cases of folders that hold images and masks, which their names tell apart."""
    if stems.endswith(":{}"):
        raise UserError(
            f"-i got 1 SOURCE, and --stems {stems!r} does not tell masks from images: give the images and then the "
            "masks, `-i IMAGES MASKS`, or the names of masks, as in --stems {}:{}_mask"
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
    return _settle(found)


def _folders_of_images(tree: Tree, source: Path) -> list[Path]:
    folders = tree.matching("*", "(.+)")
    if not folders:
        raise UserError(f"found no folder with images in it below {source}{_hint(tree)}")
    return folders


def _only(folders: list[Path]) -> list[Path]:
    if len(folders) > 1:
        listed = shortened([str(folder) for folder in folders])
        raise UserError(f"found {len(folders)} folders for the same images: {listed}. Give with -i only the one to use")
    return folders


def _settle(found: FoundCases) -> FoundCases:
    """Sort the cases and report identifiers that several have, or that not every disk tells apart."""
    known: dict[str, Case] = {}
    for case in sorted(found, key=lambda case: (case.identifier, case.subset)):
        first = known.setdefault(unicodedata.normalize("NFC", case.identifier.casefold()), case)
        if first is not case:
            text = f"{case.image} has the same case identifier as {first.image}"
            if first.identifier != case.identifier:
                text += f", {case.identifier} and {first.identifier}, on Windows and macOS"
            found.problems.append(Problem(SAME_NAME, text, case.identifier))
    found.sort(key=lambda case: (case.identifier, case.subset))
    return found


def _pair(tree: Tree, image_set: ImageSet, images: list[Path], masks: list[Path], found: FoundCases) -> None:
    """Pair by stem, never by position, and add cases, files without a partner and foreign files to what is found."""
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
            text = f"{_first(images_of[key])} has no mask {example}.* in {_common(masks)}, but {listed}"
            found.problems.append(Problem(MISSING, text, identifier))
        else:
            mask, *further = masks_of[key].values()
            found.append(Case(identifier, _first(images_of[key]), mask, image_set.subset, tuple(further)))


def _first(numbered: dict[int, Path]) -> Path:
    return next(iter(numbered.values()))


def _lost_number(numbers: Collection[int], all_numbers: Collection[int]) -> int | None:
    """Return the first number that an image's masks lack: they are consecutive and start as those of other images."""
    if _UNNUMBERED in all_numbers and _UNNUMBERED not in numbers:
        return _UNNUMBERED
    first = min((number for number in all_numbers if number != _UNNUMBERED), default=0)
    # not up to the largest, which may be anything
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
    """Return the files of each key by number, in their order, and report two that have the same one.

    Args:
        tree: Of the sources.
        folders: Whose images to return.
        image_set: The rule of names.
        stem: Regular expression of their stems.
        found: Gets the problems.
        not_stem: The same of files that are something else.
    """
    files: dict[str, dict[int, Path]] = {}
    for folder in folders:
        for path in tree.images(folder):
            match = stem_match(stem, path)
            if match and not stem_match(not_stem, path):
                # macOS decomposes letters with accents
                key = unicodedata.normalize("NFC", match[1])
                number = _UNNUMBERED if match.lastindex == 1 else int(match[2])
                same = files.setdefault(key, {})
                # Kaggle has HAM10000's folders twice, in capitals and small letters
                first = same.setdefault(number, path)
                if first is not path and not cmp(path, first, shallow=False):
                    text = f"{path} has the same case identifier as {first}"
                    found.problems.append(Problem(SAME_NAME, text, _identifier(image_set, key)))
    return {key: dict(sorted(same.items())) for key, same in files.items()}


def _match_case(images_of: dict[str, dict[int, Path]], masks_of: dict[str, dict[int, Path]]) -> None:
    """Give masks without an image the key of the image without a mask that differs in upper and lower case alone."""
    # lower() instead of casefold(), to which ß and ss are the same
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
    # what serves as part of a file name everywhere
    return re.sub(r"[^\w.-]", "_", image_set.identifier.replace("{}", key))
