"""What users say with --labels: the names of classes, and the value or colour of each in their masks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nnunet_mamba_mis.dataset_conversion.dataset import BLACK, Colour, LabelMask
from nnunet_mamba_mis.utils.errors import UserError

BACKGROUND = "background"
# nnU-Net's name for pixels that do not count
IGNORE = "ignore"


def parse_labels(texts: Sequence[str]) -> LabelMask:
    """Return what NAME=VALUE or NAME=#RRGGBB say; labels are numbered in this order, after the background.

    Raises:
        UserError: A text is malformed, or says what another one says.
    """
    value_of: dict[str, str] = {}
    colours: dict[Colour, str] = {}
    for text in texts:
        name, colour = _parsed(text)
        if any(name.casefold() == other.casefold() for other in value_of):
            raise UserError(f"--labels {text}: the name {name} is there twice")
        if colour in colours:
            raise UserError(f"--labels {text}: {colours[colour]} has the same value")
        value_of[name] = text.rpartition("=")[2]
        colours[colour] = name
    by_value = _only_one_kind(value_of)
    if BACKGROUND not in value_of:
        if BLACK in colours:
            zero = value_of[colours[BLACK]]
            raise UserError(
                f"--labels {colours[BLACK]}={zero}: {zero} is the background, unless {BACKGROUND}=… says what is"
            )
        colours = {BLACK: BACKGROUND, **colours}
    classes = [name for name in value_of if name not in (BACKGROUND, IGNORE)]
    if not classes:
        raise UserError(f"--labels {' '.join(texts)}: no class is named besides {' and '.join(value_of)}")
    # nnU-Net wants consecutive labels from 0, and the ignored one last
    names = [BACKGROUND, *classes, *([IGNORE] if IGNORE in value_of else [])]
    label_of = {name: label for label, name in enumerate(names)}
    meaning = {colour: label_of[name] for colour, name in colours.items()}
    return LabelMask(meaning, dict(enumerate(names)), by_value, label_of.get(IGNORE))


def _parsed(text: str) -> tuple[str, Colour]:
    name, _, value = text.rpartition("=")
    name = name.strip()
    if not name or not name.isprintable():
        raise UserError(f"--labels {text!r}: expected NAME=VALUE, as polyp=1, or NAME=#RRGGBB, as polyp=#ff0000")
    if name.casefold() in (BACKGROUND, IGNORE) and name not in (BACKGROUND, IGNORE):
        raise UserError(f"--labels {text}: write {name.casefold()}, in small letters, if that is what it means")
    if re.fullmatch("#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return name, (red, green, blue)
    if re.fullmatch("[0-9]{1,3}", value) and int(value) <= 255:
        return name, (int(value),) * 3
    raise UserError(f"--labels {text}: {value or 'nothing'} is neither a value from 0 to 255 nor a colour as #ff0000")


def _only_one_kind(value_of: dict[str, str]) -> bool:
    """Return whether all are values, not colours."""
    colours = [name for name, value in value_of.items() if value.startswith("#")]
    if 0 < len(colours) < len(value_of):
        name = next(name for name in value_of if name not in colours)
        raise UserError(
            f"--labels {name}={value_of[name]}: {colours[0]} is given as a colour, so give all as colours "
            f"(grey 255 is #ffffff)"
        )
    return not colours
