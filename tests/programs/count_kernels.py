"""Count the Triton kernels that a training step of the network needs on a GPU, and print a line "name count" for each.

The argument is the side of the patch (default: 256). The program compiles nothing and needs no GPU: kernels do not
run, and the rest of the network runs on a CPU under autocast.
"""

import contextlib
import sys
from collections import defaultdict
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import native_library
from nnunet_mamba_mis.ops.selective_scan import registry
from nnunet_mamba_mis.ops.selective_scan import triton as triton_backend

SIZE = int(sys.argv[1]) if sys.argv[1:] else 256


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def note(self, key, *_, **__):
    counts[self.__name__].add(key)
    return SimpleNamespace()


def launch_nothing(self, *args, grid, warmup, **kwargs):
    return run(self, *args, grid=grid, warmup=True, **kwargs)


counts = defaultdict(set)
run = JITFunction.run
JITFunction.run = launch_nothing
JITFunction._do_compile = note
driver.set_active(Driver())

backend = triton_backend.TritonBackend
backend.device = lambda self: "cpu"
backend.is_emulated = lambda self: False
backend.why_unavailable = backend.why_unsuitable = lambda self, *_: None
triton_backend._programs = lambda device: 12 * 132
torch.cuda.device_of = lambda u: contextlib.nullcontext()
registry.available_backends = lambda: ["triton"]
native_library.available = lambda: False

network = MambaMIS(3, 2, (SIZE, SIZE), variant="S", deep_supervision=True)
with torch.autocast("cpu", dtype=torch.float16):
    logits = network(torch.rand(2, 3, SIZE, SIZE))
sum(y.float().sum() for y in logits).backward()
for name, keys in counts.items():
    print(name, len(keys))
