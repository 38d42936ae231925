"""Print the peak memory of a backend's scan, forward and backward, as a multiple of the memory of all states."""

import re
import sys
from pathlib import Path

import torch

from nnunet_mamba_mis.ops import selective_scan

BATCH, CHANNELS, LENGTH, STATES = 1, 32, 16384, 32


def peak() -> int:
    # not ru_maxrss, which a process inherits from its parent
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def run(length: int) -> None:
    u, delta = (torch.rand(BATCH, CHANNELS, length, requires_grad=True) for _ in range(2))
    B, C = (torch.rand(BATCH, STATES, length, requires_grad=True) for _ in range(2))
    A = -torch.rand(CHANNELS, STATES, requires_grad=True)
    selective_scan(u, delta, A, B, C, discretization="zoh", backend=sys.argv[1]).sum().backward()


run(64)
before = peak()
run(LENGTH)
print((peak() - before) / (4 * BATCH * CHANNELS * LENGTH * STATES))
