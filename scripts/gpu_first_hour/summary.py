"""Summarize the folder of `gpu_first_hour.sh`: what passed, failed or was cut off, and the most important numbers.

summary.py OUT exits with status 1 unless everything passed.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

OUTCOMES = {"0": "passed", "cut": "cut off"}


def main(out: Path) -> int:
    """Print the summary."""
    states = {path.name: path.read_text().split() for path in sorted((out / "state").iterdir(), key=_age)}
    for name, (status, seconds) in states.items():
        outcome = OUTCOMES.get(status, f"failed ({status})")
        print(f"{name:<38} {outcome:<12} {seconds:>5} s   {'; '.join(_details(out, name))}".rstrip())
    for heading, lines in (("Failed tests", _failed_tests(out)), ("Training steps", _steps(out))):
        if listed := list(lines):
            print(f"\n{heading}", *listed, sep="\n  ")
    passed = bool(states) and all(status == "0" for status, _ in states.values())
    print("\nEverything passed." if passed else "\nNot everything passed: logs/ holds the output of each line above.")
    return 0 if passed else 1


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name


def _details(out: Path, name: str) -> Iterator[str]:
    if (tests := out / f"{name}.tsv").exists():
        counts = Counter(outcome for outcome, _, _ in _rows(tests) if outcome != "began")
        yield ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    for path in out.glob(f"bench/{name.removeprefix('bench_')}*.json"):
        results = json.loads(path.read_text())["results"].values()
        yield f"{len(results)} measured, {sum('error' in result for result in results)} failed"
    if name.startswith("train_"):
        yield from _training(out, name.removeprefix("train_"))


def _training(out: Path, trainer: str) -> Iterator[str]:
    logs = sorted(out.glob("results/*/*__nnUNetPlans__2d/fold_0/training_log_*.txt"))
    name = re.compile(rf"{trainer}(_brief|_\d+epochs?)?__.*")
    text = "\n".join(log.read_text() for log in logs if name.fullmatch(log.parts[-3]))
    if seconds := [float(value) for value in re.findall(r"Epoch time: ([\d.]+) s", text)]:
        yield f"{len(seconds)} epochs, median {statistics.median(seconds):.1f} s, first {seconds[0]:.1f} s"
    for dice in re.findall(r"Mean Validation Dice: *([\d.]+)", text)[-1:]:
        yield f"validation Dice {float(dice):.3f}"


def _failed_tests(out: Path) -> Iterator[str]:
    for path in sorted(out.glob("tests_*.tsv")):
        yield from (f"{path.stem}: {name}" for outcome, _, name in _rows(path) if outcome == "failed")


def _steps(out: Path) -> Iterator[str]:
    for path in sorted(out.glob("profile/*.json")):
        step = json.loads(path.read_text())
        memory = step.get("peak_allocated_bytes")
        alone, with_data = (step[key] * 1e3 for key in ("step_seconds", "step_with_data_seconds"))
        parts = [f"{alone:.1f} ms", f"with data {with_data:.1f} ms", f"first {step['first_step_seconds']:.1f} s"]
        parts += [f"peak {memory / 2**30:.2f} GiB"] if memory else []
        yield f"{path.stem:<32} {', '.join(parts)}, batch {step['batch']}"


def _rows(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
