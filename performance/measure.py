"""Shared by the benchmarks: interleaved medians, peak memory, tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nnunet_mamba_mis.ops import native_library as native

RESULTS = Path(__file__).parent / "results"


def medians(
    candidates: dict[str, Callable[[], object]],
    repeats: int = 7,
    warm: bool = True,
    before: dict[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Median seconds of each candidate; they take turns, so that a busy machine is busy for all.

    Args:
        candidates: What to time, by name.
        repeats: How often.
        warm: Whether each runs once before it is timed.
        before: What to run before some of them each time, outside the time taken.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    if warm:
        for candidate in candidates.values():
            candidate()
    for _ in range(repeats):
        for name, candidate in candidates.items():
            if before and name in before:
                before[name]()
            start = time.perf_counter()
            result = candidate()
            times[name].append(time.perf_counter() - start)
            del result  # what it takes to free it is not part of the work
    return {name: statistics.median(values) for name, values in times.items()}


def gpu_medians(candidates: dict[str, Callable[[], object]], repeats: int = 25) -> dict[str, float]:
    """Median seconds of each candidate on the GPU, by its own clock; they take turns, each with a cold L2 cache."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        for _ in range(3):  # compiles, and fills the allocator's cache
            candidate()
    for _ in range(repeats):
        for name, candidate in candidates.items():
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            candidate()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def describe_gpu() -> str:
    """The name of the GPU, and the versions of what runs on it."""
    import triton

    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}"


def describe_cpu() -> str:
    """What the measurements depend on besides the machine."""
    threads = torch.get_num_threads()
    return f"float32, {threads} thread{'s' * (threads != 1)}, {instruction_set()}"


def instruction_set() -> str:
    """The instruction set of native code; stops where MAMBA_MIS_INSTRUCTION_SET names one that cannot be used."""
    reason = native.why_unavailable()
    if reason is None:
        return native.instruction_set()
    if os.environ.get(native.VARIABLE):
        sys.exit(reason)
    return "no native code"


def last_line(script: Path, *arguments: str, environment: dict[str, str | None] | None = None) -> str:
    """Return what a run of `script` in a process of its own prints last.

    Args:
        script: A Python file.
        arguments: Its arguments.
        environment: Variables that it has besides those of this process; None for those that it lacks.
    """
    variables = {name: value for name, value in (os.environ | (environment or {})).items() if value is not None}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        sys.exit(f"{' '.join(command)} fails:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1]


def peak_memory(script: Path, *arguments: str) -> float:
    """Peak resident bytes of a run of `script` in a process of its own, as it prints it last."""
    return float(last_line(script, *arguments))


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table that fits a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        print(
            "  "
            + "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def write_json(name: str, results: dict) -> None:
    """Write results and what they were measured on beside the script, into results/."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, **results}, indent=2) + "\n")
    print(f"\n{path}")
