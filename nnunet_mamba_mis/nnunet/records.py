"""Check files on entry: JSON becomes an immutable object whose attributes the rest of the code trusts."""

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
        raise ValueError(f"expected the name of a file or folder, found {name!r:.60}")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]


class Record(BaseModel):
    """An object in a JSON file, with exactly the types of its fields; unknown keys are kept."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", ser_json_inf_nan="constants")

    def as_json(self) -> dict[str, Any]:
        """Return the content of the file as nnU-Net's own code expects it, with lists instead of tuples."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def read_record(path: Path, kind: type[T], way_out: str = "") -> T:
    """Return the content of a JSON file.

    Args:
        path: The file.
        kind: Type of the content: a `Record`, or a tuple of them.
        way_out: What to do about a file that cannot be used.

    Raises:
        UserError: The file cannot be read, or its content is invalid; the message names file, key and expected content.
    """
    after = f": {way_out}" if way_out else ""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} cannot be read: {_describe(error)}{after}") from None
    except (OSError, ValueError) as error:  # a name with a NUL character raises a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}{after}") from None


def check_record(content: object, kind: type[T], source: str) -> T:
    """Check and return content that another library has read; raise like `read_record`, but name `source`."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_describe(error)}") from None


def check_json(content: str, kind: type[T], source: str) -> T:
    """Check content like `check_record`, but from JSON, so lists count as tuples."""
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{source}: {_describe(error)}") from None


def read_record_if_usable(path: Path, kind: type[T], problems: list[str] | None = None) -> T | None:
    """Return the content of an optional file, or None if it is missing or cannot be used.

    Args:
        path: The file.
        kind: Type of the content.
        problems: List for a message if the file exists but cannot be used.
    """
    try:
        return read_record(path, kind) if path.exists() else None
    except UserError as error:
        if problems is not None:
            problems.append(str(error))
        return None


def _describe(error: ValidationError) -> str:
    """Describe the first problem on one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return first["msg"]
    key = repr(".".join(map(str, first["loc"])))[1:-1]  # keys are untrusted text
    actual = ""
    if first["type"] not in ("missing", "value_error"):
        value = " ".join(repr(first["input"]).split())  # an array's repr has several lines
        actual = f", found {value if len(value) <= _LONGEST_VALUE else value[:_LONGEST_VALUE] + '…'}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{key}{': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{actual}{more}"
