"""Compile the Triton kernels for GPUs that this machine lacks, in two forms.

Together, the forms cover both scan orders and both discretizations. The arguments are compute capabilities. The kernels
are compiled in both forms for the first capability, and in alternating forms for the others. For each kernel, the
program prints a line with capability, kernel and the bytes of a thread's stack.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nnunet_mamba_mis.ops.selective_scan.triton import TritonBackend


class Driver:
    """A driver whose devices are numbered by their compute capability: Triton caches kernels by device."""

    capability = 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
run = JITFunction.run


def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(Driver.capability, self.__name__, re.search(r"STACK:(\d+)", usage)[1])
    return kernel


JITFunction.run = compile_only
driver.set_active(Driver())
backend = TritonBackend()
forms = (torch.float16, True, False), (torch.float32, False, True)
for number, Driver.capability in enumerate(map(int, sys.argv[1:])):
    for dtype, exact, columns in (forms[number % 2],) if number else forms:
        u = torch.empty(2, 64, 64, 8, dtype=dtype).permute(0, 3, 1, 2)
        B, C = torch.empty(2, 64, 64, 64, dtype=dtype).permute(0, 3, 1, 2).unsqueeze(1).chunk(2, dim=2)
        if columns:
            u, B, C = u.mT, B.mT, C.mT
        inputs = {"u": u, "delta": u, "A": torch.empty(8, 32), "B": B, "C": C, "D": torch.empty(8)}
        inputs |= {"z": None if exact else u, "delta_bias": torch.empty(8)}
        y, last_state, starts = backend.forward(inputs, True, exact, True)
        backend.backward(inputs, starts, y, last_state, True, exact)
