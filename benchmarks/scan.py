"""The selective scan on a CPU: native code against our PyTorch path and against a loop over positions.

Refuses to time a wrong result. The loop is timed on a 32nd of the sequence, as its time grows with the length.
"""

from __future__ import annotations

import sys

import torch
from measure import medians, print_table, write_json

from nnunet_mamba_mis.ops import available_backends, selective_scan, selective_scan_reference

LOOP_FRACTION = 32


def arguments(batch: int, channels: int, length: int, states: int) -> dict[str, torch.Tensor]:
    """As in the network: channels-last views, Δ around softplus(−4), A = −1 … −N."""
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
    """One forward pass, or one forward and backward."""
    if not backward:
        with torch.no_grad():
            return scan(**tensors, delta_softplus=True, discretization=discretization)
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = scan(**leaves, delta_softplus=True, discretization=discretization)
    return torch.autograd.grad(y.sum(), list(leaves.values()))


def check(tensors: dict[str, torch.Tensor], discretization: str) -> None:
    """Stop if the native code is off on the start of the sequence."""
    short = {name: t[..., :500] if t.dim() == 3 else t for name, t in tensors.items()}
    exact = {name: t.double() for name, t in short.items()}
    for backward in (False, True):
        expected = run(selective_scan_reference, exact, discretization, backward)
        for name in available_backends()[:-1]:
            actual = run(lambda name=name, **k: selective_scan(**k, backend=name), short, discretization, backward)
            for a, e in zip(actual, expected, strict=True):
                error = (a.double() - e).abs().max() / e.abs().max()
                if error > 1e-4:
                    sys.exit(f"{name} is wrong by {error:.1e}: nothing is timed")


def main() -> None:
    """Print ratios and write them as JSON."""
    rows, results = [], []
    fast = [name for name in available_backends() if name in ("cpp", "torch")]
    for shape in ((1, 8, 65536, 32), (1, 16, 4096, 32), (2, 128, 64, 32)):
        length = shape[2]
        tensors = arguments(*shape)
        part = {n: t[..., : max(1, length // LOOP_FRACTION)] if t.dim() == 3 else t for n, t in tensors.items()}
        for discretization in ("zoh", "mamba"):
            check(tensors, discretization)
            for backward in (False, True):
                candidates = {
                    name: lambda name=name: run(
                        lambda **k: selective_scan(**k, backend=name), tensors, discretization, backward
                    )
                    for name in fast
                }
                times = medians(candidates)
                loop = medians({"loop": lambda: run(selective_scan_reference, part, discretization, backward)}, 1)
                times["loop"] = loop["loop"] * length / part["u"].shape[-1]
                what = "forward, backward" if backward else "forward"
                results.append({"shape": shape, "discretization": discretization, "what": what, "seconds": times})
                ratios = [f"{times[name] / times[fast[0]]:.1f}×" for name in [*fast[1:], "loop"]]
                rows.append([f"{shape} {discretization} {what}", f"{times[fast[0]] * 1e3:.2f} ms", *ratios])
                print(".", end="", flush=True)
    header = ["(batch, channels, length, states)", fast[0], *(f"{name} takes" for name in [*fast[1:], "loop"])]
    print_table(f"Selective scan, float32, {torch.get_num_threads()} threads", header, rows)
    write_json("scan", {"results": results})


if __name__ == "__main__":
    main()
