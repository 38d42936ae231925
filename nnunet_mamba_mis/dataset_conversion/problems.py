"""Problems of a source, and the single message that reports them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_mamba_mis.utils.errors import UserError
from nnunet_mamba_mis.utils.text import one_line, shortened_lines

MISSING = "missing"
SIZE_MISMATCH = "size mismatch"
UNREADABLE = "unreadable"
NOT_BINARY = "not clearly binary"
UNKNOWN_VALUE = "value without a label"
CONFLICT = "masks in conflict"
EMPTY_MASK = "empty mask"
DUPLICATE = "duplicate content"
SAME_NAME = "same case identifier"
FOREIGN = "foreign file"
# in the order in which messages list them
KINDS = (
    MISSING,
    SIZE_MISMATCH,
    UNREADABLE,
    NOT_BINARY,
    UNKNOWN_VALUE,
    CONFLICT,
    EMPTY_MASK,
    DUPLICATE,
    SAME_NAME,
    FOREIGN,
)


@dataclass(frozen=True)
class Problem:
    """A reason why part of the source cannot be converted.

    Args:
        kind: One of `KINDS`.
        text: A sentence that starts with the file's path.
        case: Identifier of the affected case, if any; --skip-bad leaves this case out.
    """

    kind: str
    text: str
    case: str | None = None


def problems_error(problems: Sequence[Problem]) -> UserError:
    """Return a single error that reports all problems of a source, with the number of each kind."""
    way_out = "Nothing was converted. Correct the source, or leave these cases and files out with --skip-bad"
    if any(problem.kind == NOT_BINARY for problem in problems):
        way_out = f"Convert masks of several classes with `mamba_mis convert folder --labels`. {way_out}"
    if len(problems) == 1:
        return UserError(f"{one_line(problems[0].text)} ({problems[0].kind}). {way_out}")
    counts = Counter(problem.kind for problem in problems)
    listed = ", ".join(f"{kind}: {counts[kind]}" for kind in KINDS if counts[kind])
    lines = [f"{len(problems)} problems in the source ({listed}):"]
    for kind in KINDS:
        lines += shortened_lines(
            [f"  {kind}: {one_line(problem.text)}" for problem in problems if problem.kind == kind]
        )
    return UserError("\n".join([*lines, way_out]))
