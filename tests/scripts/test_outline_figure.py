"""The script that draws the figure in README.md."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from PIL import Image

from support.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "outline_figure.py"
WHITE, BLUE = (247, 247, 247), (0, 168, 255)


def test_first_images_by_name_are_drawn_with_both_outlines_and_scored(tmp_path):
    for folder in ("images", "truth", "predictions"):
        (tmp_path / folder).mkdir()
    for name, shift in (("b", 20), ("c", 40), ("a", 0)):
        labels = np.zeros((120, 120), np.uint8)
        labels[30:70, 20:60] = 1
        Image.fromarray(np.full((120, 120, 3), 90, np.uint8)).save(tmp_path / "images" / f"{name}_0000.png")
        Image.fromarray(labels).save(tmp_path / "truth" / f"{name}.png")
        Image.fromarray(np.roll(labels, shift, axis=1)).save(tmp_path / "predictions" / f"{name}.png")
    options = ["-i", "images", "-g", "truth", "-p", "predictions", "-o", "figure.png", "-n", "2"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a  Dice 1.000", "b  Dice 0.500"]
    figure = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(int)
    # inside the second image, whose outlines differ
    height, width = figure.shape[:2]
    second = figure[height // 5 : height * 3 // 4, width * 11 // 20 : width * 19 // 20]
    for colour in (WHITE, BLUE):
        assert (np.abs(second - colour).sum(-1) < 60).sum() > 100
