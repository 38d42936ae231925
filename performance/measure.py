"""Tools shared by the benchmarks: medians of interleaved timings, peak memory, tables and JSON."""

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

# Limit torch and its libraries to the same instruction set as native code. They read these variables at first use.
for _variable, _values in {
    "ATEN_CPU_CAPABILITY": {"avx2": "avx2", "baseline": "default"},
    "ONEDNN_MAX_CPU_ISA": {"avx2": "AVX2", "baseline": "SSE41"},
    "MKL_ENABLE_INSTRUCTIONS": {"avx2": "AVX2", "baseline": "SSE4_2"},
}.items():
    if (_value := _values.get(os.environ.get(native.VARIABLE, ""))) is not None:
        os.environ.setdefault(_variable, _value)


def medians(
    candidates: dict[str, Callable[[], object]],
    repeats: int = 7,
    warm: bool = True,
    before: dict[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Return the median seconds of each candidate; they take turns, so that other load affects all of them alike.

    Args:
        candidates: Functions to time, by name.
        repeats: Number of runs of each candidate.
        warm: Whether to run each candidate once before timing.
        before: Functions to run, untimed, before each run of the candidate with the same name.
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
            del result  # freed outside the timed section
    return {name: statistics.median(values) for name, values in times.items()}


def gpu_medians(candidates: dict[str, Callable[[], object]], repeats: int = 25) -> dict[str, float]:
    """Return the median seconds of each candidate, by the GPU's clock; they take turns, each with a cold L2 cache."""
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        for _ in range(3):  # compile, and fill the allocator's cache
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
    """Return median seconds on a GPU, or the seconds of a single run on a CPU, which only tests the benchmark."""
    return gpu_medians(candidates) if device == "cuda" else medians(candidates, repeats=1, warm=False)


def describe_gpu() -> str:
    """Return the name of the GPU, and the versions of torch and Triton."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    try:
        triton = f"Triton {version('triton')}"
    except PackageNotFoundError:
        triton = "no Triton"
    return f"{name}, torch {torch.__version__}, {triton}"


def gpu_options(description: str, parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parse the options of the benchmarks that `make bench-gpu` runs, and add the device to run on."""
    parser = parser or argparse.ArgumentParser(description=description)
    tiny = "use the smallest sizes, to test the benchmark itself; without a GPU, run on a CPU with TRITON_INTERPRET=1"
    parser.add_argument("--tiny", action="store_true", help=tiny)
    resume = "resume an interrupted run on this machine: measure only what RESULTS lacks"
    parser.add_argument("--continue", dest="resume", action="store_true", help=resume)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file (default: %(default)s)")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


class Journal:
    """Results by name in a JSON file, which is written after each measurement so that a benchmark can resume.

    A failed measurement is recorded as `{"error": …}`, and repeated when the benchmark resumes.
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
        """Return the result of this name; measure it first if it is missing or an error."""
        if "error" in self.results.get(name, {"error": "missing"}):
            try:
                self.results[name] = work()
            except Exception as error:  # other measurements may still work
                self.results[name] = {"error": f"{type(error).__name__}: {error}"}
                print(f"\n{name}: {self.results[name]['error']}")
            self._write()
            print(".", end="", flush=True)
        return self.results[name]

    def finish(self) -> None:
        """Print the path of the file, and exit with status 1 if a measurement failed."""
        print(f"\n{self.path}")
        failed = [name for name, result in self.results.items() if "error" in result]
        if failed:
            sys.exit(f"{len(failed)} of {len(self.results)} measurements failed: {', '.join(failed)}")

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({**self.head, "results": self.results}, indent=2) + "\n")
        partial.replace(self.path)


def describe_cpu() -> str:
    """Describe dtype, threads and instruction set, on which measurements depend."""
    threads = torch.get_num_threads()
    return f"float32, {threads} thread{'s' * (threads != 1)}, {instruction_set()}"


def instruction_set() -> str:
    """Return the instruction set of native code; exit if MAMBA_MIS_INSTRUCTION_SET names an unusable one."""
    reason = native.why_unavailable()
    if reason is None:
        return native.instruction_set()
    if os.environ.get(native.VARIABLE):
        sys.exit(reason)
    return "no native code"


def last_line(script: Path, *arguments: str, environment: dict[str, str | None] | None = None) -> str:
    """Run a script in its own process, and return the last line that it prints.

    Args:
        script: Python file.
        arguments: Arguments of the script.
        environment: Environment variables to add to this process's, or to remove if None.
    """
    variables = {name: value for name, value in (os.environ | (environment or {})).items() if value is not None}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1]


def peak_memory(script: Path, *arguments: str) -> float:
    """Run a script in its own process, and return the peak resident bytes that it prints last."""
    return float(last_line(script, *arguments))


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table with aligned columns."""
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
    """Return the properties of the machine, besides the GPU, on which results depend."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(name: str, results: dict) -> None:
    """Write results and a description of the machine into the folder results/ beside this file."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": describe_machine(), **results}, indent=2) + "\n")
    print(f"\n{path}")
