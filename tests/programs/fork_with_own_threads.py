"""Scan on threads of our own before a fork, then in both processes; compare results and count threads."""

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


def count_threads() -> int:
    """Return the number of threads of this process."""
    return len(os.listdir("/proc/self/task"))


def main() -> None:
    """Compare the scans, and count threads before and after the first one of each process."""
    already = count_threads()
    with torch.no_grad():
        before = selective_scan(*arguments, backend="cpp")
        print(f"{count_threads() - already} threads started", flush=True)
        child = os.fork()
        same = torch.equal(selective_scan(*arguments, backend="cpp"), before)
    if child == 0:
        os.write(1, f"child: {'equal' if same else 'different'}, {count_threads() - 1} threads started\n".encode())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f"parent: {'equal' if same else 'different'}, the child's status {status}")


if __name__ == "__main__":
    sys.exit(main())
