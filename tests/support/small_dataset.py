"""A dataset for tests that need any dataset."""

from __future__ import annotations

import functools
import json

import numpy as np

from support.images import disc
from support.nnunet_workplace import Dataset, Workplace, write_image, write_label

NUMBER, NAME = 41, "Dataset041_Tiny"
ELSEWHERE, OTHER = 42, "Dataset042_Elsewhere"
# for this size nnU-Net plans a patch of 32 × 32 pixels; networks would pad a larger patch to 64 × 64
SIZE = 32, 30


@functools.cache
def discs(nnunet: Workplace) -> Dataset:
    """Write, plan and preprocess a dataset of eight small grey images with one disc each."""
    rng = np.random.default_rng(0)
    cases = {}
    for case in range(8):
        mask = disc(rng.integers(10, 22), rng.integers(10, 20), 7, SIZE)
        cases[f"case{case}"] = ((rng.integers(0, 60, (1, *SIZE)) + 100 * mask).astype(np.uint8), mask)
    return nnunet.add(Dataset(NUMBER, cases, {"background": 0, "polyp": 1}))


@functools.cache
def write_elsewhere(nnunet: Workplace) -> None:
    """Write two images of the dataset as a test set "far", and as another dataset."""
    tiny = discs(nnunet)
    for name, part in ((NAME, "Ts_far"), (OTHER, "Tr")):
        folder = nnunet.raw / name
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True)
        for case in ("case0", "case1"):
            image, label = tiny.cases[case]
            write_image(folder / f"images{part}", f"{part}_{case}", image, tiny)
            write_label(folder / f"labels{part}" / f"{part}_{case}.png", label, tiny)
    description = json.loads((nnunet.raw / NAME / "dataset.json").read_text())
    (nnunet.raw / OTHER / "dataset.json").write_text(json.dumps(description))
