"""The synthetic dataset is reproducible, has Kvasir-SEG's layout, and is not trivial."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nnunet_mamba_mis.benchmark.evaluation.metrics import count
from nnunet_mamba_mis.dataset_conversion import DATASETS
from nnunet_mamba_mis.demo.synthetic_polyps import draw_case, write_synthetic_set


def test_synthetic_images_do_not_depend_on_the_number_of_images(tmp_path):
    write_synthetic_set(tmp_path / "a", 3)
    write_synthetic_set(tmp_path / "b", 2)
    names = sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*.jpg"))
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_gives_another_set(tmp_path):
    write_synthetic_set(tmp_path / "a", 1, seed=0)
    write_synthetic_set(tmp_path / "b", 1, seed=1)
    (first,), (other,) = ((tmp_path / name / "images").iterdir() for name in "ab")
    assert first.read_bytes() != other.read_bytes()


def test_synthetic_set_has_the_layout_and_the_noisy_masks_of_kvasir_seg(tmp_path):
    write_synthetic_set(tmp_path, 4)
    cases = DATASETS["kvasir-seg"].find_cases([tmp_path])
    assert len(cases) == 4
    values = set()
    for i, case in enumerate(sorted(cases, key=lambda case: case.identifier)):
        image, mask = np.asarray(Image.open(case.image)), np.asarray(Image.open(case.mask))
        assert image.shape == mask.shape and image.shape[2] == 3
        values |= set(np.unique(mask).tolist())
        _, drawn = draw_case(np.random.default_rng([0, i]))
        np.testing.assert_array_equal(mask.max(axis=2) > 127, drawn)
    assert {0, 255} < values, "compression noise"


@pytest.mark.parametrize("i", range(6))
def test_a_synthetic_image_has_a_polyp_that_no_brightness_threshold_finds(i):
    image, mask = draw_case(np.random.default_rng([0, i]))
    assert 0.02 < mask.mean() < 0.5
    grey = image.mean(axis=2)
    for threshold in range(10, 250, 10):
        for guess in (grey > threshold, grey <= threshold):
            assert count(mask, guess).dice < 0.85
