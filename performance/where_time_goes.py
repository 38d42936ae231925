"""Measure where Mamba-MIS B spends its time on a CPU: native code by function, torch's operators by kind, and Python.

Native code and the whole pass are timed without a profiler, and torch's operators with torch's profiler. The remaining
time goes to Python, torch's dispatch and autograd.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

from measure import describe_cpu, print_table, write_json
from network import infer, make, train
from torch.profiler import ProfilerActivity, profile

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.memory import keep_freed_memory

# kind → parts of the names of its operators; an operator belongs to the first kind that fits
KINDS = {
    "Fourier transforms": ("fft",),
    "convolutions": ("conv",),
    "matrix products": ("mm",),
    "copies": ("copy", "cat", "fill", "zero"),
    "views and allocation": (
        "view", "reshape", "slice", "select", "transpose", "permute", "stride", "squeeze", "expand", "split", "unbind",
        "movedim", "flatten", "narrow", "chunk", "detach", "empty",
    ),
    "other operators": ("",),
}  # fmt: skip


class Parts:
    """Seconds and calls of each part in one pass."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def add(self, part: str, seconds: float, calls: float = 1) -> None:
        """Add the seconds of one or several calls of a part."""
        self.seconds[part] += seconds
        self.calls[part] += calls


class TimedLibrary:
    """A wrapper of the native library that records the seconds and calls of each function in `parts`."""

    def __init__(self) -> None:
        self.parts = Parts()
        self._library = native.library()

    def __getattr__(self, name: str) -> Callable:
        function = getattr(self._library, name)

        def timed(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            self.parts.add(f"native: {name.removeprefix('mamba_mis_')}", time.perf_counter() - start)
            return result

        setattr(self, name, timed)  # so that __getattr__ runs only once per function
        return timed


def torch_parts(work: Callable[[], object], repeats: int) -> Parts:
    """Measure torch's own operators, each without the operators that it calls."""
    parts = Parts()
    os.environ["KINETO_LOG_LEVEL"] = "99"  # otherwise Kineto reports a missing GPU as an error
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            work()
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            kind = next(kind for kind, names in KINDS.items() if any(name in event.key for name in names))
            parts.add(f"torch: {kind}", event.self_cpu_time_total / 1e6 / repeats, event.count / repeats)
    return parts


def count_python_calls(work: Callable[[], object]) -> int:
    """Count the calls of functions that are written in Python."""
    events: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _argument: events.update((event,)))
    work()
    sys.setprofile(None)
    return events["call"]


def where(what: str, work: Callable[[], object], library: TimedLibrary, repeats: int) -> dict:
    """Print the table of one kind of pass, and return its data."""
    for _ in range(3):
        work()
    library.parts = Parts()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    whole = (time.perf_counter() - start) / repeats
    parts = Parts()
    for part, seconds in library.parts.seconds.items():
        parts.add(part, seconds / repeats, library.parts.calls[part] / repeats)
    torch_operators = torch_parts(work, repeats)
    parts.seconds += torch_operators.seconds
    parts.calls += torch_operators.calls
    parts.add("the rest: Python, dispatch, autograd", whole - parts.seconds.total(), count_python_calls(work))
    rows = [
        [part, f"{seconds * 1e3:.1f} ms", f"{seconds / whole:.0%}", f"{parts.calls[part]:.0f}"]
        for part, seconds in parts.seconds.most_common()
        if seconds > 0.005 * whole
    ]
    print_table(f"{what}: {whole * 1e3:.1f} ms ({describe_cpu()})", ["part", "time", "share", "calls"], rows)
    return {"what": what, "seconds": whole, "parts": parts.seconds, "calls": parts.calls}


def main() -> None:
    """Print the tables and write them as JSON."""
    library = TimedLibrary()
    with patch.object(native, "library", lambda: library):  # before other code can store one of its functions
        network = make("MambaMIS B patch", 96)
        results = [
            where("Inference 96² × 1", partial(infer, network, 96), library, repeats=20),
            where("Training step 96² × 4", partial(train, network, 96, 4), library, repeats=5),
        ]
    write_json("where_time_goes", {"results": results})


if __name__ == "__main__":
    keep_freed_memory()
    main()
