"""Print what --skip-bad left out of a conversion."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_mamba_mis.utils.text import counted, one_line, shortened_lines


def print_left_out(problems: Sequence[str]) -> None:
    """Print the problems of the files that --skip-bad left out, if any."""
    if problems:
        print(f"Left out, with {counted(len(problems), 'problem')}:")
        print("\n".join(shortened_lines([f"  {one_line(text)}" for text in problems])))
