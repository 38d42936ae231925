"""What torch.compile is told of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def constant_when_traced(function: Callable[P, R]) -> Callable[P, R]:
    """Let torch.compile call a function while it traces, and take the result for a constant.

    As `torch.compiler.assume_constant_result` does, which imports the compiler for it: a second in every process.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
