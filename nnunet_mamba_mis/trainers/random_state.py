"""The state of all random number generators that training draws from in its main process."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of Python's, numpy's and torch's generators, and of the device's own."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().numpy()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state().numpy()
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators back to what `get_random_state` returned; another device's is left alone."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if device.type in state:
        getattr(torch, device.type).set_rng_state(torch.from_numpy(state[device.type]))


def is_random_state(state: Any, device: torch.device) -> bool:
    """Whether `set_random_state` can take this, from a file; no generator in use is changed."""
    try:
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(torch.from_numpy(state["torch"]))
        if device.type in state and device.type != "cpu":
            torch.Generator(device).set_state(torch.from_numpy(state[device.type]))
    # whatever is wrong with it
    except Exception:
        return False
    return True
