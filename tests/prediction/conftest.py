"""Models that are written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from support.predictions import MODELS


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Callable[[str], Path]:
    """Write one of `MODELS`, once."""
    return functools.cache(lambda name: MODELS[name].write(tmp_path_factory.mktemp("models") / name))
