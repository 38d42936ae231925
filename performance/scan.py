"""Compare the selective scan in native code on a CPU with loops over positions, mambapy and the backend torch.

The script refuses to time a scan with wrong results. It times each loop once, on the longest sequence: forward on all
of it, forward and backward on a 16th of it. The time of the 16th is scaled up, as it is proportional to the length.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
from baselines import mambapy_scan, sequential_loop
from measure import describe_cpu, medians, print_table, write_json

from nnunet_mamba_mis.ops import available_backends, selective_scan, selective_scan_reference
from nnunet_mamba_mis.ops.memory import keep_freed_memory

LONG = (1, 8, 65536, 32)
FAST = {name: partial(selective_scan, backend=name) for name in ("cpp", "torch") if name in available_backends()}
FAST["mambapy"] = mambapy_scan
LOOPS = {"loop": sequential_loop, "reference": selective_scan_reference}


def arguments(batch: int, channels: int, length: int, states: int) -> dict[str, torch.Tensor]:
    """Return scan arguments as in the network: channels-last views, Δ around softplus(−4), A = −1 … −N."""
    torch.manual_seed(0)
    bc = torch.randn(batch, length, 2 * states)
    return {
        "u": torch.randn(batch, length, channels).mT,
        "delta": torch.randn(batch, length, channels).mT - 4,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": bc[..., :states].mT,
        "C": bc[..., states:].mT,
        "D": torch.ones(channels),
    }


def run(scan, tensors: dict[str, torch.Tensor], discretization: str, backward: bool):
    """Run one forward pass, or one forward and backward pass."""
    if not backward:
        with torch.no_grad():
            return scan(**tensors, delta_softplus=True, discretization=discretization)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = scan(**leaves, delta_softplus=True, discretization=discretization)
    return torch.autograd.grad(y.sum(), list(leaves.values()))


def check(tensors: dict[str, torch.Tensor], discretization: str) -> None:
    """Exit if a scan is wrong on the first 2048 positions, which are enough for several threads to share."""
    short = {name: t[..., :2048] if t.dim() == 3 else t for name, t in tensors.items()}
    exact = {name: t.double() for name, t in short.items()}
    for backward in (False, True):
        expected = run(selective_scan_reference, exact, discretization, backward)
        for name, scan in (FAST | LOOPS).items():
            for a, e in zip(run(scan, short, discretization, backward), expected, strict=True):
                error = (a.double() - e).abs().max() / e.abs().max()
                if error > 1e-4:
                    sys.exit(f"{name} has a relative error of {error:.1e}: no timings")


def torch_beside_native_code() -> dict[str, float]:
    """Return the seconds of a convolution, alone and between native scans; they differ if two thread pools exist."""
    x, weight, tensors = torch.randn(1, 32, 256, 256), torch.randn(32, 32, 3, 3), arguments(*LONG)

    def convolve():
        return torch.nn.functional.conv2d(x, weight, padding=1)

    between = partial(run, FAST["cpp"], tensors, "zoh", False)
    return medians({"alone": convolve, "between scans": convolve}, repeats=25, before={"between scans": between})


def loop_seconds(tensors: dict[str, torch.Tensor], backward: bool) -> dict[str, float]:
    """Return the seconds of the loops over positions for the whole sequence."""
    share = 16 if backward else 1
    part = {name: t[..., : t.shape[-1] // share] if t.dim() == 3 else t for name, t in tensors.items()}
    candidates = {name: partial(run, scan, part, "zoh", backward) for name, scan in LOOPS.items()}
    return {name: share * t for name, t in medians(candidates, repeats=1, warm=False).items()}


def main() -> None:
    """Print ratios and write them as JSON."""
    rows, results = [], []
    for shape in (LONG, (1, 16, 4096, 32), (2, 128, 64, 32)):
        tensors = arguments(*shape)
        for discretization in ("zoh", "mamba"):
            check(tensors, discretization)
            for backward in (False, True):
                work = partial(run, tensors=tensors, discretization=discretization, backward=backward)
                times = medians({name: partial(work, scan) for name, scan in FAST.items()})
                if shape == LONG and discretization == "zoh":
                    times |= loop_seconds(tensors, backward)
                what = "forward, backward" if backward else "forward"
                results.append({"shape": shape, "discretization": discretization, "what": what, "seconds": times})
                first = next(iter(FAST))
                others = [name for name in (*FAST, *LOOPS) if name != first]
                ratios = [f"{times[name] / times[first]:.1f}×" if name in times else "" for name in others]
                rows.append([f"{shape} {discretization} {what}", f"{times[first] * 1e3:.2f} ms", *ratios])
                print(".", end="", flush=True)
    header = ["(batch, channels, length, states)", first, *others]
    print_table(f"Selective scan ({describe_cpu()}): time, and time of the others relative to it", header, rows)
    beside = torch_beside_native_code() if "cpp" in FAST else {}
    if beside:
        ratio = beside["between scans"] / beside["alone"]
        print(f"\nA torch convolution between native scans takes {ratio:.2f}× its time alone")
    write_json("scan", {"results": results, "convolution_seconds": beside})


if __name__ == "__main__":
    keep_freed_memory()
    main()
