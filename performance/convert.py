"""Compare the time of `mamba_mis convert` with a bare loop that decodes and encodes the same files, in the same run.

python performance/convert.py kvasir-seg /data/Kvasir-SEG
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.dataset_conversion.convert import convert_dataset
from nnunet_mamba_mis.dataset_conversion.dataset import Case
from nnunet_mamba_mis.dataset_conversion.images import COMPRESSION


def bare_loop(cases: list[Case], folder: Path) -> None:
    """Decode images and masks and write them as PNGs, without checks, labels or a report."""
    for i, case in enumerate(cases):
        Image.open(case.image).convert("RGB").save(folder / f"{i}_0000.png", **COMPRESSION)
        Image.open(case.mask).convert("L").save(folder / f"{i}.png", **COMPRESSION)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print images per second of each candidate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=DATASETS)
    parser.add_argument("source", type=Path)
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each candidate; the fastest counts (default: %(default)s)"
    )
    args = parser.parse_args()
    dataset = DATASETS[args.name]
    cases = list(dataset.find_cases([args.source]))
    os.environ.pop("nnUNet_preprocessed", None)
    os.environ.pop("nnUNet_results", None)
    times: dict[str, list[float]] = {"bare loop": [], "-np 1": [], "-np 2": []}
    # candidates take turns, so that other work on the machine affects all of them alike
    for _ in range(args.repeats):
        for what, taken in times.items():
            with tempfile.TemporaryDirectory() as folder:
                os.environ["nnUNet_raw"] = folder
                if what == "bare loop":
                    taken.append(seconds(lambda: bare_loop(cases, Path(folder))))
                else:
                    number = int(what.split()[1])
                    taken.append(seconds(lambda: convert_dataset(dataset, [args.source], 1, processes=number)))
    # the minimum, as other work on the machine only adds time
    least = {what: min(taken) for what, taken in times.items()}
    for what, fastest in least.items():
        ratio = least["bare loop"] / fastest
        print(f"{args.name} {what:10} {len(cases) / fastest:6.0f} images/s  {ratio:.2f}× the speed of the bare loop")
    print(f"{args.name} -np 2 has {least['-np 1'] / least['-np 2']:.2f}× the speed of -np 1")


if __name__ == "__main__":
    main()
