"""Print the fastest backend, the instruction set, the error of a scan and the time of a larger one in milliseconds."""

import json
import sys
import time

import torch

from nnunet_mamba_mis.ops import available_backends, native_library, selective_scan, selective_scan_reference

torch.manual_seed(0)


def arguments(length: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(1, 8, length), torch.rand(1, 8, length), -torch.rand(8, 32), *torch.randn(2, 1, 32, length)


small, large = arguments(100), arguments(65536)
difference = selective_scan(*small) - selective_scan_reference(*(t.double() for t in small))  # type: ignore[operator]
times = []
for _ in range(5):
    began = time.perf_counter()
    selective_scan(*large)
    times.append(time.perf_counter() - began)
print(
    json.dumps(
        {
            "backend": available_backends()[0],
            "instruction_set": native_library.instruction_set() if native_library.available() else None,
            "error": float(difference.abs().max()),
            "milliseconds": round(1000 * min(times), 1),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "nnunetv2": "nnunetv2" in sys.modules,
        }
    )
)
if "--expect" in sys.argv:
    assert available_backends()[0] == sys.argv[-1], available_backends()
