"""The layouts that datasets are distributed in: find their folders and pair images with masks."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from filecmp import cmp
from functools import partial
from pathlib import Path

from nnunet_mamba_mis.dataset_conversion.dataset import TRAINING, Case, FoundCases
from nnunet_mamba_mis.dataset_conversion.problems import FOREIGN, MISSING, SAME_NAME, Problem
from nnunet_mamba_mis.dataset_conversion.tree import IMAGE_SUFFIXES, Tree
from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import shortened

_DOCUMENTS = frozenset({".txt", ".csv", ".md", ".pdf", ".json", ".xml", ".html"})

_ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".gz"})


@dataclass(frozen=True)
class ImageSet:
    """A folder of images and the folder of their masks, as a dataset distributes them; names in any case.

    Args:
        images: End of the path of the folder with the images, such as "TestDataset/Kvasir/images"; may hold "*".
        masks: The same of the masks.
        subset: "Tr" (must be there) or the name of a test set (may be absent).
        image_stem: Regular expression of an image's stem; its group is what image and mask share.
        mask_stem: The same of a mask's stem.
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
    archives = [str(path) for paths in tree.values() for path in paths if path.suffix.lower() in _ARCHIVES]
    if not archives:
        return ""
    return f". Archives lie there. Give them with -i, unpacked first if they lie in others: {shortened(archives)}"


def _has_training_set(tree: Tree, layout: Sequence[ImageSet]) -> bool:
    return all(
        tree.matching(image_set.images, image_set.image_stem) and tree.matching(image_set.masks, image_set.mask_stem)
        for image_set in layout
        if image_set.subset == TRAINING
    )


def find_in_two_folders(sources: Sequence[Path], stems: str = "{}:{}") -> FoundCases:
    """Return the cases of a folder of images, the first source, and a folder of masks, the second.

    Args:
        sources: Two, each with a single folder of images at any depth.
        stems: The stem of an image and that of its mask, with {} for what both share, such as "img_{}:img_{}_mask".

    Raises:
        UserError: Stems is malformed, or a source is not one folder of images.
    """
    patterns = stems.split(":")
    if len(patterns) != 2 or any(pattern.count("{}") != 1 for pattern in patterns):
        raise UserError(
            f"--stems {stems!r}: expected IMAGE:MASK, each with a {{}} for what they share, as {{}}:{{}}_mask"
        )
    if len(sources) != 2:
        raise UserError(f"-i got {len(sources)} SOURCE: give the images and then the masks, `-i IMAGES MASKS`")
    image_stem, mask_stem = (re.escape(pattern).replace(r"\{\}", "(.+)") for pattern in patterns)
    image_set = ImageSet("*", "*", image_stem=image_stem, mask_stem=mask_stem)
    found, tree = FoundCases(), Tree([])
    places: list[list[Path]] = []
    for source in sources:
        below = Tree([source], allowed=sources)
        tree.update(below)
        found.problems += below.problems
        places.append(_only(below.matching("*", "(.+)")))
        if not places[-1]:
            raise UserError(f"found no folder with images in it below {source}")
    _pair(tree, image_set, places[0], places[1], found)
    return _settle(found)


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
    image_of = _by_key(tree, images, image_set, image_set.image_stem, found)
    mask_of = _by_key(tree, masks, image_set, image_set.mask_stem, found)
    _check_foreign(tree, image_set, images, masks, found)
    _match_case(image_of, mask_of)
    for key in sorted(image_of.keys() | mask_of.keys()):
        identifier = _identifier(image_set, key)
        if key not in mask_of:
            text = f"{image_of[key]} has no mask {_example(image_set.mask_stem, key)}.* in {_common(masks)}"
            found.problems.append(Problem(MISSING, text, identifier))
        elif key not in image_of:
            text = f"{mask_of[key]} has no image {_example(image_set.image_stem, key)}.* in {_common(images)}"
            found.problems.append(Problem(MISSING, text, identifier))
        else:
            found.append(Case(identifier, image_of[key], mask_of[key], image_set.subset))


def _by_key(tree: Tree, folders: list[Path], image_set: ImageSet, stem: str, found: FoundCases) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder in folders:
        for path in tree.images(folder):
            if match := re.fullmatch(stem, path.stem, re.IGNORECASE):
                # macOS decomposes letters with accents
                key = unicodedata.normalize("NFC", match[1])
                if key in files and not cmp(path, files[key], shallow=False):
                    text = f"{path} has the same case identifier as {files[key]}"
                    found.problems.append(Problem(SAME_NAME, text, _identifier(image_set, key)))
                # Kaggle has HAM10000's folders twice, in capitals and small letters
                files.setdefault(key, path)
    return files


def _match_case(image_of: dict[str, Path], mask_of: dict[str, Path]) -> None:
    """Give a mask without an image the key of the image without a mask that differs in upper and lower case alone."""
    free = {key.casefold(): key for key in sorted(image_of.keys() - mask_of.keys())}
    for key in sorted(mask_of.keys() - image_of.keys()):
        if key.casefold() in free:
            mask_of[free.pop(key.casefold())] = mask_of.pop(key)


def _check_foreign(tree: Tree, image_set: ImageSet, images: list[Path], masks: list[Path], found: FoundCases) -> None:
    known: dict[Path, list[str]] = {}
    for folders, stem in ((images, image_set.image_stem), (masks, image_set.mask_stem)):
        for folder in folders:
            known.setdefault(folder, [image_set.others]).append(stem)
    for folder, stems in known.items():
        for path in tree[folder]:
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                if path.suffix.lower() not in _DOCUMENTS:
                    found.problems.append(Problem(FOREIGN, f"{path} is neither an image nor a document"))
            elif not any(re.fullmatch(stem, path.stem, re.IGNORECASE) for stem in stems):
                found.problems.append(Problem(FOREIGN, f"{path} is not named like an image or mask of this set"))


def _example(stem: str, key: str) -> str:
    return re.sub(r"\(.+?\)", lambda _: key, stem, count=1)


def _common(folders: list[Path]) -> Path:
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath(folders))


def _identifier(image_set: ImageSet, key: str) -> str:
    # what serves as part of a file name everywhere
    return re.sub(r"[^\w.-]", "_", image_set.identifier.format(key))
