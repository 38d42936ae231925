"""The memory model of `mamba_mis plan`: against autograd, and against peaks of training steps."""

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
@pytest.mark.parametrize("variant", ["S", "B", "L"])
def test_parameters_are_counted_as_the_network_has_them(variant, size):
    with torch.device("meta"):
        network = MambaMIS(3, 4, size, variant=variant, deep_supervision=True)
    assert parameters(variant, size, 3, 4) == sum(p.numel() for p in network.parameters())


def bytes_at_autograd(device: str, variant: str, size: tuple[int, int], batch: int) -> float:
    """Bytes kept for backward for an image, counted at autograd's hooks; a GPU's need none, as tensors are fake."""
    with FakeTensorMode(), torch.device(device):
        network = MambaMIS(3, 2, size, variant=variant, deep_supervision=True)
        x = torch.empty(batch, 3, *size)
        mine = {p.untyped_storage()._cdata for p in network.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in mine:
                kept[storage._cdata] = storage  # while it lives, no other has its address
            return tensor

        # torch.autocast leaves CUDA alone where there is none
        torch.set_autocast_enabled("cuda", device == "cuda")
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                network(x)
        finally:
            torch.set_autocast_enabled("cuda", False)
    return sum(storage.nbytes() for storage in kept.values()) / batch


@pytest.mark.feature("Planning", "the memory model against autograd and the peak on a CPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("variant", "size"), [("S", (192, 512)), ("B", (512, 512)), ("L", (256, 128))], ids=str)
def test_model_counts_what_autograd_keeps(device, variant, size, monkeypatch):
    if device == "cuda":  # which there need not be
        use_backend("triton", monkeypatch)
    counted = bytes_at_autograd(device, variant, size, batch=4)
    assert kept_bytes(device, variant, size) == pytest.approx(counted, rel=0.03)


def measured_peak(device: str, variant: str, size: tuple[int, int], batch: int) -> int:
    """Peak of training steps in a process of their own."""
    command = [sys.executable, REPOSITORY / "performance" / "memory.py", device, variant, *map(str, (*size, batch))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.feature("Planning", "the memory model against autograd and the peak on a CPU")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
@pytest.mark.parametrize(
    ("variant", "size", "batch"),
    [("S", (128, 128), 8), ("B", (256, 256), 4), ("L", (128, 128), 4)],
    ids=str,
)
def test_model_agrees_with_the_peak_on_a_cpu(variant, size, batch):
    assert training_bytes("cpu", variant, size, batch) == pytest.approx(
        measured_peak("cpu", variant, size, batch), rel=0.2
    )


@pytest.mark.feature("Planning", "the memory model against the peak on a GPU, where there is one")
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(
    ("variant", "size", "batch"), [("S", (256, 256), 8), ("B", (256, 256), 12), ("B", (512, 512), 4)], ids=str
)
def test_model_agrees_with_the_peak_on_a_gpu(variant, size, batch):
    assert training_bytes("cuda", variant, size, batch) == pytest.approx(
        measured_peak("cuda", variant, size, batch), rel=0.2
    )
