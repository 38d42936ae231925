"""Scan on threads of our own before a fork, then in both processes; neither must hang."""

import os
import sys

import torch

from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops import selective_scan

native._openmp_parallel = lambda: None
torch.set_num_threads(3)
# so few values that torch itself works on one thread: its own pool does not survive a fork
u = torch.rand(1, 4, 4096, generator=torch.Generator().manual_seed(0))
arguments = (u, u + 1, -torch.ones(4, 16), torch.ones(1, 16, 4096), torch.ones(1, 16, 4096))


def main() -> None:
    """Print, in each process, whether the scan equals the one before the fork."""
    with torch.no_grad():
        before = selective_scan(*arguments, backend="cpp")
        child = os.fork()
        same = torch.equal(selective_scan(*arguments, backend="cpp"), before)
    if child == 0:
        os.write(1, b"equal in the child\n" if same else b"different in the child\n")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("equal in the parent" if same and status == 0 else f"different in the parent, or status {status}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
