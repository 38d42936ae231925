"""A dataset for tests that need some dataset and no matter which."""

from __future__ import annotations

import functools

import numpy as np
from nnunet_workplace import Dataset, Workplace

NUMBER = 41


@functools.cache
def discs(nnunet: Workplace) -> Dataset:
    """Eight small grey images with a disc each, planned and preprocessed."""
    rng = np.random.default_rng(0)
    row, column = np.ogrid[:40, :36]
    cases = {}
    for case in range(8):
        mask = (row - rng.integers(12, 28)) ** 2 + (column - rng.integers(12, 24)) ** 2 < 50
        cases[f"case{case}"] = ((rng.integers(0, 60, (1, 40, 36)) + 100 * mask).astype(np.uint8), mask.astype(np.uint8))
    return nnunet.add(Dataset(NUMBER, cases, {"background": 0, "polyp": 1}))
