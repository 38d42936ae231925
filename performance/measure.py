"""Shared by the benchmarks: interleaved medians, peak memory, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
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


def device_medians(device: str, candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds on a GPU; on a CPU, where nothing is measured in earnest, of one run."""
    return gpu_medians(candidates) if device == "cuda" else medians(candidates, repeats=1, warm=False)


def describe_gpu() -> str:
    """The name of the GPU, and the versions of what runs on it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    try:
        triton = f"Triton {version('triton')}"
    except PackageNotFoundError:
        triton = "no Triton"
    return f"{name}, torch {torch.__version__}, {triton}"


def gpu_options(description: str, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Command-line options of the benchmarks that `make bench-gpu` runs, and the device on which they run."""
    parser = parser or argparse.ArgumentParser(description=description)
    tiny = "the smallest sizes, and on a CPU (with TRITON_INTERPRET=1) if there is no GPU: does the benchmark work?"
    parser.add_argument("--tiny", action="store_true", help=tiny)
    resume = "measure only what RESULTS lacks, such as the rest of a run that was cut off on this machine"
    parser.add_argument("--continue", dest="resume", action="store_true", help=resume)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file (default: %(default)s)")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


class Journal:
    """Results by name in a JSON file, which is written after each: a benchmark that was cut off can continue.

    What fails is recorded as `{"error": …}`, and measured again when the benchmark continues.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.path = options.results / f"{name}.json"
        self.head = {"machine": describe_machine(), "gpu": describe_gpu(), "tiny": options.tiny}
        self.results: dict[str, dict] = {}
        if options.resume and self.path.exists():
            earlier = json.loads(self.path.read_text())
            if {key: earlier.get(key) for key in self.head} == self.head:
                self.results = earlier["results"]

    def measure(self, name: str, work: Callable[[], dict]) -> dict:
        """Return the result of this name, measured now unless it is there."""
        if "error" in self.results.get(name, {"error": "missing"}):
            try:
                self.results[name] = work()
            except Exception as error:  # the others may work
                self.results[name] = {"error": f"{type(error).__name__}: {error}"}
                print(f"\n{name}: {self.results[name]['error']}")
            self._write()
            print(".", end="", flush=True)
        return self.results[name]

    def finish(self) -> None:
        """Name the file; exit with status 1 if anything failed."""
        print(f"\n{self.path}")
        failed = [name for name, result in self.results.items() if "error" in result]
        if failed:
            sys.exit(f"{len(failed)} of {len(self.results)} failed: {', '.join(failed)}")

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({**self.head, "results": self.results}, indent=2) + "\n")
        partial.replace(self.path)


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


def describe_machine() -> dict:
    """What results depend on besides the GPU."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(name: str, results: dict) -> None:
    """Write results and what they were measured on beside the script, into results/."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": describe_machine(), **results}, indent=2) + "\n")
    print(f"\n{path}")
