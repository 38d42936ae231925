"""The selective scan on a GPU: our Triton kernels against mamba_ssm's, a program a row, and the memory's speed.

Refuses to time a wrong result. The floor is the time in which the GPU, at the speed at which it copies, could read the
inputs once and write the outputs (and backward: read the inputs and ∂y, and write their gradients).
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from measure import describe_gpu, gpu_medians, print_table, write_json
from row_kernel import row_scan
from scan import arguments

from nnunet_mamba_mis.ops import available_backends, selective_scan

SHAPES = ((12, 8, 65536), (12, 16, 4096), (12, 32, 1024), (2, 8, 262144), (32, 8, 65536))
STATES = 32
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2}


def candidates(discretization: str, backward: bool) -> dict:
    """Scans by name, ours first."""
    scans = {name: partial(selective_scan, backend=name) for name in ("triton", "mamba_ssm", "torch")}
    scans = {name: scan for name, scan in scans.items() if name in available_backends()}
    if discretization != "mamba":
        scans.pop("mamba_ssm", None)
    if not backward:
        scans["a program a row"] = row_scan
    return scans


def on_gpu(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As in the network under autocast: sequences in half precision, parameters in float32."""
    tensors = arguments(*shape, STATES)
    return {name: t.cuda() if t.dim() < 3 else t.cuda().to(dtype) for name, t in tensors.items()}


def prepare(scan, tensors: dict[str, torch.Tensor], discretization: str, backward: bool):
    """What is to be timed: a forward pass, or a forward and a backward."""
    leaves = {name: t.detach().requires_grad_(backward) for name, t in tensors.items()}
    grad = torch.ones_like(tensors["u"])

    def work():
        with torch.set_grad_enabled(backward):
            y = scan(**leaves, delta_softplus=True, discretization=discretization)
            return torch.autograd.grad(y, list(leaves.values()), grad) if backward else (y,)

    return work


def check(scans: dict, tensors: dict[str, torch.Tensor], discretization: str, backward: bool) -> None:
    """Stop if anything that will be timed differs from the PyTorch path, which the tests hold against the reference."""
    exact = {name: t.float() for name, t in tensors.items()}
    expected = prepare(partial(selective_scan, backend="torch"), exact, discretization, backward)()
    for name, scan in scans.items():
        for actual, wanted in zip(prepare(scan, tensors, discretization, backward)(), expected, strict=True):
            error = ((actual.float() - wanted).abs().max() / wanted.abs().max()).item()
            if not error < TOLERANCE[tensors["u"].dtype]:
                sys.exit(f"{name} is wrong by {error:.1e}: nothing is timed")


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of a gigabyte."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / gpu_medians({"copy": lambda: target.copy_(source)})["copy"]


def bytes_to_move(tensors: dict[str, torch.Tensor], backward: bool) -> int:
    """Of a forward pass, or of a forward and a backward."""
    inputs = sum(t.numel() * t.element_size() for t in tensors.values())
    output = tensors["u"].numel() * tensors["u"].element_size()
    return inputs + output + (2 * inputs + output if backward else 0)


def main() -> None:
    """Print ratios and write them as JSON."""
    if not torch.cuda.is_available():
        sys.exit("there is no usable CUDA device: nothing is timed")
    bandwidth = copy_bandwidth()
    rows, results = [], []
    columns = ["mamba_ssm", "a program a row", "torch"]
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float16):
            tensors = on_gpu(shape, dtype)
            for discretization in ("zoh", "mamba"):
                for backward in (False, True):
                    scans = candidates(discretization, backward)
                    check(scans, tensors, discretization, backward)
                    work = {name: prepare(scan, tensors, discretization, backward) for name, scan in scans.items()}
                    times = gpu_medians(work)
                    floor = bytes_to_move(tensors, backward) / bandwidth
                    what = f"{discretization} {str(dtype)[6:]} {'forward, backward' if backward else 'forward'}"
                    results.append({"shape": shape, "what": what, "seconds": times, "floor_seconds": floor})
                    ours = times["triton"]
                    ratios = [f"{times[name] / ours:.1f}×" if name in times else "" for name in columns]
                    rows.append([f"{shape} {what}", f"{ours * 1e3:.3f} ms", f"{ours / floor:.1f}×", *ratios])
    title = f"Selective scan, N = {STATES}, {describe_gpu()}, copies {bandwidth / 1e12:.2f} TB/s"
    print_table(title, ["", "triton", "of the floor", *(f"{name} takes" for name in columns)], rows)
    write_json("scan_gpu", {"gpu": describe_gpu(), "copy_bytes_per_second": bandwidth, "results": results})


if __name__ == "__main__":
    main()
