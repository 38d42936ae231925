"""Random scans, their values and gradients, and the backends that this machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_mamba_mis.ops import available_backends, selective_scan, selective_scan_reference
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.ops.selective_scan import registry

FAST_BACKENDS = [name for name in available_backends() if name not in ("reference", "mamba_ssm", "triton")]
needs_native = pytest.mark.skipif(not native.available(), reason=f"no native code: {native.why_unavailable()}")
INSTRUCTION_SETS = native.instruction_sets() if native.available() else []
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}  # relative to the largest value of a tensor
PROGRAMS = Path(__file__).resolve().parents[1] / "programs"


def make_arguments(batch, channels, length, states, groups=None, dtype=torch.float64, scale=1.0):
    """Return random arguments of a scan; with groups None, B and C have no group axis."""

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype)

    by_group = (batch, states, length) if groups is None else (batch, groups, states, length)
    return {
        "u": normal(batch, channels, length),
        "delta": scale * normal(batch, channels, length),
        "A": -4 * torch.rand(channels, states, dtype=dtype),
        "B": normal(*by_group),
        "C": normal(*by_group),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }


def planar(arguments, height, width):
    """Return the arguments with two axes of positions."""
    return {k: v.unflatten(-1, (height, width)) if v.dim() > 2 else v for k, v in arguments.items()}


def double(arguments):
    """Return the arguments in float64 on the CPU."""
    return {k: v if v is None else v.double().cpu() for k, v in arguments.items()}


def with_memory_order(change, arguments):
    """Return the same values, with sequences stored in the memory order of `change(v)`; `change` is its own inverse."""
    return {k: change(change(v).contiguous()) if v is not None and v.dim() > 2 else v for k, v in arguments.items()}


def with_gradients(results, leaves):
    """Add the gradients of a randomly weighted sum of all results with respect to each leaf."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in results.values()]
    loss = sum((t * weight).sum() for t, weight in zip(results.values(), weights, strict=True))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return results | {f"grad {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def values_and_gradients(scan, arguments, **options):
    """Return outputs, last state, and the gradients of a randomly weighted sum of both, keyed by name."""
    # leaves keep the strides of the arguments
    leaves = {k: v.detach().requires_grad_() for k, v in arguments.items() if v is not None}
    y, last_state = scan(**leaves, return_last_state=True, **options)
    return with_gradients({"y": y, "last_state": last_state}, leaves)


def check_scan(backend, arguments, given=None, tolerance=None, **options):
    """Assert that a backend's values and gradients match the float64 reference, and return them.

    Args:
        backend: Name of the backend.
        arguments: Arguments of the reference.
        given: Arguments of the backend, if their strides, dtypes or axes of positions differ.
        tolerance: Tolerance of `assert_same`; default: the tolerance for the dtype of u.
        options: Options of `selective_scan`.
    """
    given = arguments if given is None else given
    tolerance = TOLERANCE[given["u"].dtype] if tolerance is None else tolerance
    expected = values_and_gradients(selective_scan_reference, double(arguments), **options)
    actual = values_and_gradients(selective_scan, given, backend=backend, **options)
    on_one_axis = {k: v.flatten(-2) if v.dim() > expected[k].dim() else v for k, v in actual.items()}
    assert_same({k: v.cpu() for k, v in on_one_axis.items()}, expected, tolerance)
    return actual


def assert_same(actual, expected, tolerance):
    """Assert that tensors agree by name, within `tolerance` times the larger of 1 and the tensor's largest value."""
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        error = (actual[name].double() - reference.double()).abs().max()
        assert error <= tolerance * max(1.0, reference.double().abs().max()), f"{name}: off by {error:.3g}"


def assert_same_bits(results):
    """Assert that all results, tensors by name, are bit-identical."""
    first, *others = results
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def use_instruction_set(name, monkeypatch):
    """Run native code with one of `INSTRUCTION_SETS`."""
    chosen = native.load_library(name)
    monkeypatch.setattr(native, "library", lambda: chosen)


def use_backend(name, monkeypatch):
    """Run every scan on one backend, even an unsuitable one; pixelwise layers do not change."""
    monkeypatch.setattr(registry, "fastest_backend", lambda *_: registry.BACKENDS[name])


def run_program(name, *arguments, **options):
    """Run a file of tests/programs in its own process, and return its standard output."""
    command = [sys.executable, "-W", "ignore", PROGRAMS / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
