"""The state of all random number generators that the main process of training draws from."""

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
    """Restore the state that `get_random_state` returned; ignore the part of another device."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if device.type in state:
        getattr(torch, device.type).set_rng_state(torch.from_numpy(state[device.type]))


def is_random_state(state: Any, device: torch.device) -> bool:
    """Return whether `set_random_state` accepts a state from a file, without changing a generator in use."""
    try:
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(torch.from_numpy(state["torch"]))
        if device.type in state and device.type != "cpu":
            torch.Generator(device).set_state(torch.from_numpy(state[device.type]))
    # a damaged state can raise any exception
    except Exception:
        return False
    return True
