"""Compare the Triton scan on a GPU with mamba_ssm, a scan with one program per row, and the speed of memory.

The script refuses to time a scan with wrong results. The floor is the time that the GPU, at its copying speed, needs to
read the inputs once and write the outputs (with backward, also to read them again with ∂y, and write the gradients).
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import product

import torch
from measure import Journal, describe_gpu, device_medians, gpu_options, print_table
from row_kernel import row_scan
from scan import arguments

from nnunet_mamba_mis.ops import available_backends, selective_scan

SHAPES = ((12, 8, 65536), (12, 16, 4096), (12, 32, 1024), (2, 8, 262144), (32, 8, 65536))
STATES = 32
TINY, TINY_STATES = ((1, 2, 9),), 2
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2}


def candidates(discretization: str, backward: bool) -> dict:
    """Return scans by name, the Triton scan first."""
    scans = {name: partial(selective_scan, backend=name) for name in ("triton", "mamba_ssm", "torch")}
    scans = {name: scan for name, scan in scans.items() if name in available_backends()}
    if discretization != "mamba":
        scans.pop("mamba_ssm", None)
    if not backward:
        scans["one program per row"] = row_scan
    return scans


def on_device(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Return scan arguments as in the network under autocast: sequences in half precision, parameters in float32."""
    tensors = arguments(*shape)
    return {name: t.to(device) if t.dim() < 3 else t.to(device, dtype) for name, t in tensors.items()}


def prepare(scan, tensors: dict[str, torch.Tensor], discretization: str, backward: bool):
    """Return the function to time: a forward pass, or a forward and a backward pass."""
    leaves = {name: t.detach().requires_grad_(backward) for name, t in tensors.items()}
    grad = torch.ones_like(tensors["u"])

    def work():
        with torch.set_grad_enabled(backward):
            y = scan(**leaves, delta_softplus=True, discretization=discretization)
            return torch.autograd.grad(y, list(leaves.values()), grad) if backward else (y,)

    return work


def check(scans: dict, tensors: dict[str, torch.Tensor], discretization: str, backward: bool) -> None:
    """Raise a ValueError if a scan differs from the backend torch, which the tests compare with the reference."""
    exact = {name: t.float() for name, t in tensors.items()}
    expected = prepare(partial(selective_scan, backend="torch"), exact, discretization, backward)()
    for name, scan in scans.items():
        for actual, wanted in zip(prepare(scan, tensors, discretization, backward)(), expected, strict=True):
            error = ((actual.float() - wanted).abs().max() / wanted.abs().max()).item()
            if not error < TOLERANCE[tensors["u"].dtype]:
                raise ValueError(f"{name} has a relative error of {error:.1e}: no timings")


def copy_bandwidth(device: str) -> float:
    """Return the bytes per second, read and written, of a copy of a gigabyte."""
    source = torch.empty(2**28 if device == "cuda" else 2**16, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / device_medians(device, {"copy": lambda: target.copy_(source)})["copy"]


def bytes_to_move(tensors: dict[str, torch.Tensor], backward: bool) -> int:
    """Return the bytes that a forward pass, or a forward and a backward pass, must read and write."""
    inputs = sum(t.numel() * t.element_size() for t in tensors.values())
    output = tensors["u"].numel() * tensors["u"].element_size()
    return inputs + output + (2 * inputs + output if backward else 0)


def measure(shape, dtype: torch.dtype, discretization: str, backward: bool, bandwidth: float, device: str) -> dict:
    """Return the seconds of every scan, and the floor."""
    tensors = on_device(shape, dtype, device)
    scans = candidates(discretization, backward)
    check(scans, tensors, discretization, backward)
    work = {name: prepare(scan, tensors, discretization, backward) for name, scan in scans.items()}
    return {"seconds": device_medians(device, work), "floor_seconds": bytes_to_move(tensors, backward) / bandwidth}


def main() -> None:
    """Print ratios and write them as JSON."""
    options = gpu_options(__doc__)
    if options.device == "cpu" and not options.tiny:
        sys.exit("no usable CUDA device was found: use --tiny to test this benchmark on a CPU")
    journal = Journal("scan_gpu", options)
    bandwidth = journal.measure("copy", lambda: {"bytes_per_second": copy_bandwidth(options.device)})
    bandwidth = bandwidth["bytes_per_second"]
    rows = []
    columns = ["mamba_ssm", "one program per row", "torch"]
    shapes, states = (TINY, TINY_STATES) if options.tiny else (SHAPES, STATES)
    dtypes = (torch.float32, torch.float16)
    for shape, dtype, discretization, backward in product(shapes, dtypes, ("zoh", "mamba"), (False, True)):
        name = f"{shape} {discretization} {str(dtype)[6:]} {'forward, backward' if backward else 'forward'}"
        work = partial(measure, (*shape, states), dtype, discretization, backward, bandwidth, options.device)
        result = journal.measure(name, work)
        if "error" not in result:
            times, ours = result["seconds"], result["seconds"]["triton"]
            ratios = [f"{times[name] / ours:.1f}×" if name in times else "" for name in columns]
            rows.append([name, f"{ours * 1e3:.3f} ms", f"{ours / result['floor_seconds']:.1f}×", *ratios])
    title = f"Selective scan, N = {states}, {describe_gpu()}, copies {bandwidth / 1e12:.2f} TB/s"
    print_table(title, ["", "triton", "vs floor", *(f"{name} vs triton" for name in columns)], rows)
    journal.finish()


if __name__ == "__main__":
    main()
