"""Check a file where it enters: JSON becomes an immutable object whose attributes the rest of the code trusts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from nnunet_mamba_mis.utils.errors import UserError

T = TypeVar("T")
_LONGEST_VALUE = 60
_LONGEST_NAME = 255  # bytes


def _check_file_name(name: str) -> str:
    if (
        Path(name).name != name
        or name == ".."
        or "\0" in name
        or not 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME
    ):
        raise ValueError(f"the name of a file or folder is expected, found {name!r:.60}")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]


class Record(BaseModel):
    """An object in a JSON file, with the types that its writer gives them; keys that it does not know are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", ser_json_inf_nan="constants")

    def as_json(self) -> dict[str, Any]:
        """Return it as nnU-Net's own code takes it: what was in the file, with lists for tuples."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_record(path: Path, kind: type[T], way_out: str = "") -> T:
    """Return the content of a JSON file.

    Args:
        path: The file.
        kind: Type of the content: a `Record`, or a tuple of them.
        way_out: What to do about a file that cannot be used.

    Raises:
        UserError: It cannot be read, or has other content; the text names file, key and what was expected.
    """
    after = f": {way_out}" if way_out else ""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} cannot be read: {_in_words(error)}{after}") from None
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}{after}") from None


def check_record(content: object, kind: type[T], source: str) -> T:
    """Return what another library has read; `source` names it in the error, which is as of `read_record`."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_in_words(error)}") from None


def check_json(content: str, kind: type[T], source: str) -> T:
    """Return what another library has read, written as JSON again: as `check_record`, but lists are tuples too."""
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_in_words(error)}") from None


def read_record_if_usable(path: Path, kind: type[T], problems: list[str] | None = None) -> T | None:
    """Return the content of a file that only describes; None if it is missing or cannot be used.

    Args:
        path: The file.
        kind: Type of the content.
        problems: Why a file that exists cannot be used is added, in words.
    """
    try:
        return read_record(path, kind) if path.exists() else None
    except UserError as error:
        if problems is not None:
            problems.append(str(error))
        return None


def _in_words(error: ValidationError) -> str:
    """The first of the problems, on one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return first["msg"]
    key = repr(".".join(map(str, first["loc"])))[1:-1]  # keys are strangers' text
    found = ""
    if first["type"] not in ("missing", "value_error"):
        value = " ".join(repr(first["input"]).split())  # an array's has several lines
        found = f", found {value if len(value) <= _LONGEST_VALUE else value[:_LONGEST_VALUE] + '…'}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}{': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{found}{more}"
