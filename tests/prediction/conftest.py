"""Trained models, written once per session."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from support.predictions import MODELS


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that writes one of `MODELS` on first use, and returns its folder."""
    return functools.cache(lambda name: MODELS[name].write(tmp_path_factory.mktemp("models") / name))
