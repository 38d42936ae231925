"""Compare training steps of Mamba-MIS B on two threads with steps on one thread.

The script measures three cases. In the first, OMP_WAIT_POLICY is not set, so the OpenMP runtime chooses how long
torch's threads spin before they sleep. In the second, OMP_WAIT_POLICY=passive makes them sleep while they wait. In the
third, native code has threads of its own, as on machines where torch's OpenMP runtime is not found.

`threads.py measure` uses the waiting policy in its environment, and prints the seconds as JSON.
`threads.py measure-own` also hides torch's OpenMP runtime.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from measure import instruction_set, last_line, medians, print_table, write_json
from network import make, train

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.memory import keep_freed_memory

SETUPS = ((96, 8), (256, 2))  # size, batch
# name → OMP_WAIT_POLICY, which is read when a process starts, and the argument of this script
POLICIES = {"default": (None, "measure"), "passive": ("passive", "measure"), "own threads": (None, "measure-own")}


def measure() -> list[dict]:
    """Return the seconds of a training step by number of threads; one and two threads take turns."""
    small = make("MambaMIS B patch", 32)

    def use(threads: int) -> None:
        torch.set_num_threads(threads)
        train(small, 32, 1)  # starts the threads

    results = []
    for size, batch in SETUPS:
        step = partial(train, make("MambaMIS B patch", size), size, batch)
        before = {name: partial(use, int(name)) for name in ("1", "2")}
        seconds = medians(dict.fromkeys(before, step), repeats=5, before=before)
        results.append({"size": size, "batch": batch, "seconds": seconds})
    return results


def main() -> None:
    """Print ratios and write them as JSON."""
    results = []
    for policy, (value, what) in POLICIES.items():
        measured = last_line(Path(__file__), what, environment={"OMP_WAIT_POLICY": value})
        results += [{"policy": policy, **result} for result in json.loads(measured)]
        print(".", end="", flush=True)
    rows = []
    for result in results:
        one, two = (result["seconds"][name] for name in ("1", "2"))
        name = f"{result['size']}² × {result['batch']}, {result['policy']}"
        rows.append([name, f"{one * 1e3:.0f} ms", f"{two * 1e3:.0f} ms", f"{one / two:.2f}×"])
    title = f"Training step of Mamba-MIS B by threads (float32, {instruction_set()})"
    print_table(title, ["patch × batch, threads", "one thread", "two threads", "faster"], rows)
    write_json("threads", {"results": results})


if __name__ == "__main__":
    if sys.argv[1:] in (["measure"], ["measure-own"]):
        if sys.argv[1] == "measure-own":
            native._openmp_parallel = lambda: None
        keep_freed_memory()
        print(json.dumps(measure()))
    else:
        main()
