"""The memory model of `mamba_mis plan`, compared with autograd and with peaks of training steps."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.planning.memory import kept_bytes, parameters, training_bytes
from support.paths import REPOSITORY
from support.scans import use_backend


@pytest.mark.feature("Planning", "the memory model against autograd and the peak on a CPU")
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (100, 40)], ids=str)
@pytest.mark.parametrize(
    ("variant", "stem"), [("S", "patch"), ("B", "patch"), ("L", "patch"), ("B", "conv"), ("H", "patch"), ("H", "conv")]
)
def test_parameter_count_matches_the_network(variant, stem, size):
    with torch.device("meta"):
        network = MambaMIS(3, 4, size, variant=variant, stem=stem, deep_supervision=True)
    assert parameters(variant, size, 3, 4, stem) == sum(p.numel() for p in network.parameters())


def bytes_at_autograd(device: str, stem: str, variant: str, size: tuple[int, int], batch: int) -> float:
    """Count, with autograd's hooks on fake tensors (which need no GPU), the bytes per image kept for backward."""
    with FakeTensorMode(), torch.device(device):
        network = MambaMIS(3, 2, size, variant=variant, stem=stem, deep_supervision=True)
        x = torch.empty(batch, 3, *size)
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage  # while it lives, no other storage has its address
            return tensor

        # without a GPU, torch.autocast ignores CUDA
        torch.set_autocast_enabled("cuda", device == "cuda")
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                network(x)
        finally:
            torch.set_autocast_enabled("cuda", False)
    return sum(storage.nbytes() for storage in kept.values()) / batch


@pytest.mark.feature("Planning", "the memory model against autograd and the peak on a CPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("stem", "variant", "size"),
    [
        (stem, *setup)
        for stem in ("patch", "conv")
        for setup in (("S", (192, 512)), ("B", (512, 512)), ("L", (256, 128)), ("H", (256, 256)))
    ],
    ids=str,
)
def test_model_counts_what_autograd_keeps(device, stem, variant, size, monkeypatch):
    if device == "cuda":  # even without a GPU
        use_backend("triton", monkeypatch)
    counted = bytes_at_autograd(device, stem, variant, size, batch=4)
    assert kept_bytes(device, variant, size, stem=stem) == pytest.approx(counted, rel=0.03)


def measured_peak(device: str, stem: str, variant: str, size: tuple[int, int], batch: int) -> int:
    """Measure the peak of training steps in a separate process."""
    setup = (device, stem, variant, *map(str, (*size, batch)))
    command = [sys.executable, REPOSITORY / "performance" / "memory.py", *setup]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.feature("Planning", "the memory model against autograd and the peak on a CPU")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
@pytest.mark.parametrize(
    ("stem", "variant", "size", "batch"),
    [("patch", "B", (256, 256), 4), ("patch", "L", (128, 128), 4), ("conv", "H", (128, 128), 8)],
    ids=str,
)
def test_model_agrees_with_the_peak_on_a_cpu(stem, variant, size, batch):
    assert training_bytes("cpu", variant, size, batch, stem=stem) == pytest.approx(
        measured_peak("cpu", stem, variant, size, batch), rel=0.2
    )


@pytest.mark.feature("Planning", "the memory model against the peak on a GPU")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("stem", "variant", "size", "batch"),
    [
        *(("patch", "S", (256, 256), 8), ("patch", "B", (256, 256), 12), ("patch", "B", (512, 512), 4)),
        ("conv", "H", (256, 256), 12),
    ],
    ids=str,
)
def test_model_agrees_with_the_peak_on_a_gpu(stem, variant, size, batch):
    assert training_bytes("cuda", variant, size, batch, stem=stem) == pytest.approx(
        measured_peak("cuda", stem, variant, size, batch), rel=0.2
    )
