"""The script that compares decodings of saved probabilities."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from PIL import Image

from support.paths import REPOSITORY


def test_each_decoding_is_scored(tmp_path):
    truth = np.zeros((20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    # probability 0.42 in the object (100 pixels), 0.1 elsewhere (300): a threshold of 0.5 finds nothing, and the mask
    # with the largest expected Dice is the object
    probability = np.where(truth == 1, 0.42, 0.1)
    Image.fromarray(truth).save(tmp_path / "case.png")
    np.savez(tmp_path / "case.npz", probabilities=np.stack([1 - probability, probability])[:, None])
    done = subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "compare_decoding.py", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    scores = {line.rsplit(maxsplit=1)[0].strip(): float(line.split()[-1]) for line in done.stdout.splitlines()}
    assert scores["0.4"] == scores["largest expected Dice"] == 1
    assert scores["0.45"] == scores["0.5"] == 0
