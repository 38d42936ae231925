"""Parse --labels: the names of classes, and the value or colour of each in the masks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nnunet_mamba_mis.dataset_conversion.dataset import BLACK, Colour, LabelMask
from nnunet_mamba_mis.utils.errors import UserError

BACKGROUND = "background"
# nnU-Net's name for pixels to ignore
IGNORE = "ignore"


def parse_labels(texts: Sequence[str]) -> LabelMask:
    """Parse texts NAME=VALUE or NAME=#RRGGBB; labels are numbered in this order, after the background.

    Raises:
        UserError: A text is malformed, or repeats a name or value.
    """
    value_of: dict[str, str] = {}
    colours: dict[Colour, str] = {}
    for text in texts:
        name, colour = _parsed(text)
        if any(name.casefold() == other.casefold() for other in value_of):
            raise UserError(f"--labels {text}: the name {name} is given twice")
        if colour in colours:
            raise UserError(f"--labels {text}: {colours[colour]} has the same value")
        value_of[name] = text.rpartition("=")[2]
        colours[colour] = name
    by_value = _all_are_values(value_of)
    if BACKGROUND not in value_of:
        if BLACK in colours:
            zero = value_of[colours[BLACK]]
            raise UserError(
                f"--labels {colours[BLACK]}={zero}: {zero} is the background; if not, name the background's value with "
                f"{BACKGROUND}=VALUE"
            )
        colours = {BLACK: BACKGROUND, **colours}
    classes = [name for name in value_of if name not in (BACKGROUND, IGNORE)]
    if not classes:
        raise UserError(f"--labels {' '.join(texts)}: name a class in addition to {' and '.join(value_of)}")
    # nnU-Net expects consecutive labels from 0, and the ignored one last
    names = [BACKGROUND, *classes, *([IGNORE] if IGNORE in value_of else [])]
    label_of = {name: label for label, name in enumerate(names)}
    meaning = {colour: label_of[name] for colour, name in colours.items()}
    return LabelMask(meaning, dict(enumerate(names)), by_value, label_of.get(IGNORE))


def _parsed(text: str) -> tuple[str, Colour]:
    name, _, value = text.rpartition("=")
    name = name.strip()
    if not name or not name.isprintable():
        raise UserError(
            f"--labels {text!r}: expected NAME=VALUE, such as polyp=1, or NAME=#RRGGBB, such as polyp=#ff0000"
        )
    if name.casefold() in (BACKGROUND, IGNORE) and name not in (BACKGROUND, IGNORE):
        raise UserError(f"--labels {text}: write {name.casefold()} in lower case, or choose another name")
    if re.fullmatch("#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return name, (red, green, blue)
    if re.fullmatch("[0-9]{1,3}", value) and int(value) <= 255:
        return name, (int(value),) * 3
    raise UserError(
        f"--labels {text}: expected a value from 0 to 255 or a colour such as #ff0000, not {value or 'nothing'}"
    )


def _all_are_values(value_of: dict[str, str]) -> bool:
    """Return whether all labels have values, not colours; raise UserError if they are mixed."""
    colours = [name for name, value in value_of.items() if value.startswith("#")]
    if 0 < len(colours) < len(value_of):
        name = next(name for name in value_of if name not in colours)
        raise UserError(
            f"--labels {name}={value_of[name]}: give all labels as colours, as you did for {colours[0]} (grey 255 is "
            "#ffffff)"
        )
    return not colours
