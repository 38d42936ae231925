"""The selective scan in plain PyTorch, parallel over chunks of the sequence, with a hand-written backward.

The L positions form chunks of T positions. All chunks advance together, one position at a time. So a step works on
(chunks × batch × channels × states) values, and Python runs T steps instead of L:

1. Run every chunk from a zero state, which gives the state that the chunk adds.
2. Loop over chunks to compute the states at chunk starts: a factor e^{A ΣΔ} carries a state across a whole chunk.
3. Run every chunk again from its true start, which gives the outputs.

Backward is the same scan in the other direction. It recomputes states from the chunk starts in blocks of positions, so
it needs only a fraction of the memory of (length × channels × states) values.

The internal layout has time first and rows last. A sequence is (T, ..., R), where a row is a (chunk, sample) pair. A
state is (N, G, P, R) for N states, G groups of B and C, and P channels in a group.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan.backend import Backend
from nnunet_mamba_mis.ops.selective_scan.differentiable import differentiable_scan
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs, check_tensor
from nnunet_mamba_mis.ops.transforms import decompose_gradient, decompose_under_transforms, gradients_in_torch

# values in one step's state: few enough that a block of steps fits in a CPU's cache, or enough to fill a GPU
STEP_VALUES = {"cpu": 2**15, "other": 2**20}


class TorchBackend(Backend):
    """Backend "torch"."""

    name = "torch"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Implement `Backend.scan`."""
        return _scan_with(chunked_scan, inputs)


class DifferentiableBackend(Backend):
    """Counterpart of `TorchBackend` for all transforms and derivatives of any order; users cannot choose it."""

    name = "differentiable"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Implement `Backend.scan`."""
        return _scan_with(differentiable_scan, inputs)


def _scan_with(scan: Callable[..., tuple[Tensor, ...]], inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Add bias, softplus, skip term and gate to a plain scan, and return outputs and last state."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization = inputs.over_one_axis()
    # compute in float32 or better for any input dtype, even under autocast
    dtype = torch.promote_types(u.dtype, torch.float32)
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    y, last_state, *_ = scan(x, delta, A, B, C, discretization == "zoh")
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y, last_state


def nonzero(A: Tensor) -> Tensor:
    """Replace zeros in A by values so small that they act as zero, which avoids 0/0 in (e^{ΔA} − 1)/A."""
    return torch.where(A.abs() < 1e-20, -1e-20, A)


@torch.library.custom_op("nnunet_mamba_mis::chunked_scan", mutates_args=())
def chunked_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs (batch, D, L), last state (batch, D, N) and states at chunk starts (N, G, P, R).

    Args:
        u: (batch, D, L).
        delta: (batch, D, L), positive.
        A: (D, N).
        B: (batch, G, N, L).
        C: (batch, G, N, L).
        exact: Whether the weight of B_t u_t is (e^{ΔA} − 1)/A, as in the zero-order hold; otherwise it is Δ.
    """
    _check(u, delta, A, B, C)
    batch, channels, length = u.shape
    chunks = _cut_arguments(u, delta, A, B, C, exact)
    zero = u.new_zeros(_state_shape(u, A, B))
    added = _run_chunks(chunks, zero)
    starts, last = _carry(_decay_of_chunks(chunks), added, zero[..., :batch])
    y = torch.empty_like(chunks.u)
    _run_chunks(chunks, starts, y)
    last = last.permute(3, 1, 2, 0).reshape(batch, channels, -1)
    return _join(y, batch, length).reshape(u.shape).contiguous(), last.contiguous(), starts


@chunked_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    _check(u, delta, A, B, C)
    last = u.new_empty(u.shape[0], u.shape[1], A.shape[1])
    return u.new_empty(u.shape), last, u.new_empty(_state_shape(u, A, B))


@torch.library.custom_op("nnunet_mamba_mis::chunked_scan_backward", mutates_args=())
def chunked_scan_backward(
    grad_y: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    starts: Tensor,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `chunked_scan` with respect to u, delta, A, B and C.

    The gradient g_t of h_t is itself a scan, run backwards: g_t = C_t ∂y_t + decay_{t+1} g_{t+1}.
    """
    _check(u, delta, A, B, C)
    check_tensor("grad_y", grad_y, u.shape, u.device, u.dtype)
    check_tensor("grad_last", grad_last, (*u.shape[:2], A.shape[1]), u.device, u.dtype)
    check_tensor("starts", starts, _state_shape(u, A, B), u.device, u.dtype)
    batch, _, length = u.shape
    chunks = _cut_arguments(u, delta, A, B, C, exact)
    count = starts.shape[-1] // batch
    grad_y = _cut(grad_y.unflatten(1, chunks.by_group), chunks.u.shape[0], count)
    grad_last = grad_last.unflatten(1, chunks.by_group).permute(3, 1, 2, 0)

    added = torch.zeros_like(starts)
    for block in reversed(chunks.blocks()):
        decay = (chunks.delta[block].unsqueeze(1) * chunks.A).exp_()
        added = _advance_gradient(grad_y[block].unsqueeze(1) * chunks.C[block], decay, added)
    carried, _ = _carry(_decay_of_chunks(chunks), added, grad_last, backwards=True)

    block_starts: list[Tensor] = []
    _run_chunks(chunks, starts, block_starts=block_starts)
    grads = _Gradients(
        u=torch.empty_like(chunks.u),
        delta=torch.empty_like(chunks.delta),
        A=torch.zeros_like(starts),
        B=torch.empty_like(chunks.B),
        C=torch.empty_like(chunks.C),
    )
    for block, start in zip(reversed(chunks.blocks()), reversed(block_starts), strict=True):
        carried = _block_gradients(chunks, block, start, grad_y[block], carried, grads)

    def whole(grad: Tensor) -> Tensor:
        return _join(grad, batch, length).reshape(u.shape).contiguous()

    def whole_by_group(grad: Tensor) -> Tensor:
        return _join(grad.squeeze(3), batch, length).transpose(1, 2).contiguous()

    grad_A = grads.A.sum(-1).flatten(1).t().contiguous()
    return whole(grads.u), whole(grads.delta), grad_A, whole_by_group(grads.B), whole_by_group(grads.C)


@chunked_scan_backward.register_fake
def _(grad_y, grad_last, u, delta, A, B, C, starts, exact):
    _check(u, delta, A, B, C)
    return tuple(t.new_empty(t.shape) for t in (u, delta, A, B, C))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.exact = inputs
    ctx.save_for_backward(*tensors, output[2])


def _autograd(ctx, grad_y, grad_last, _grad_starts):
    u, delta, A, B, C, starts = ctx.saved_tensors
    grads = chunked_scan_backward(grad_y, grad_last, u, delta, A, B, C, starts, ctx.exact)
    return *grads, None


chunked_scan.register_autograd(_autograd, setup_context=_setup_context)


def _scan_in_torch(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `chunked_scan` in PyTorch operations, with empty chunk-start states."""
    return *differentiable_scan(u, delta, A, B, C, exact), u.new_zeros(0)


def _gradients_in_torch(grad_y: Tensor, grad_last: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
    *tensors, _starts, exact = arguments
    scan = functools.partial(differentiable_scan, exact=exact)
    return tuple(gradients_in_torch(scan, tensors, (grad_y, grad_last)))


decompose_under_transforms(chunked_scan, _scan_in_torch)
decompose_gradient(chunked_scan_backward, _gradients_in_torch)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if u.dim() != 3 or B.dim() != 4:
        raise ValueError(f"u must be (batch, D, L) and B (batch, G, N, L), not {tuple(u.shape)} and {tuple(B.shape)}")
    ScanInputs(u, delta, A, B, C, None, None, None, False, "mamba").check_tensors(u.dtype)


class _Chunks(NamedTuple):
    """Arguments of the scan, cut into chunks."""

    u: Tensor  # (T, G, P, R)
    delta: Tensor  # (T, G, P, R)
    A: Tensor  # (N, G, P, 1)
    B: Tensor  # (T, N, G, 1, R)
    C: Tensor  # (T, N, G, 1, R)
    exact: bool

    @property
    def by_group(self) -> tuple[int, int]:
        return self.u.shape[1], self.u.shape[2]

    def blocks(self) -> list[slice]:
        """Return slices of time so short that a block of states needs little memory compared with all states."""
        steps = self.u.shape[0]
        size = max(1, math.isqrt(steps) // 2)
        return [slice(start, min(start + size, steps)) for start in range(0, steps, size)]


class _Gradients(NamedTuple):
    """Gradients shaped as the arguments in `_Chunks`, except the gradient of A, which is kept per row: (N, G, P, R)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def _chunk_plan(u: Tensor, A: Tensor) -> tuple[int, int]:
    """Return the number of steps in a chunk, and the number of chunks."""
    batch, channels, length = u.shape
    limit = STEP_VALUES["cpu" if u.device.type == "cpu" else "other"] // (batch * channels * A.shape[1])
    steps = -(-length // max(1, min(limit, math.isqrt(length))))
    return steps, -(-length // steps)


def _state_shape(u: Tensor, A: Tensor, B: Tensor) -> tuple[int, int, int, int]:
    batch, channels, _ = u.shape
    groups = B.shape[1]
    return A.shape[1], groups, channels // groups, _chunk_plan(u, A)[1] * batch


def _cut_arguments(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, exact: bool) -> _Chunks:
    plan = _chunk_plan(u, A)
    by_group = (B.shape[1], u.shape[1] // B.shape[1])
    return _Chunks(
        u=_cut(u.unflatten(1, by_group), *plan),
        delta=_cut(delta.unflatten(1, by_group), *plan),
        A=nonzero(A).t().unflatten(1, by_group).unsqueeze(-1).contiguous(),
        B=_cut(B.transpose(1, 2), *plan).unsqueeze(3),
        C=_cut(C.transpose(1, 2), *plan).unsqueeze(3),
        exact=exact,
    )


def _cut(x: Tensor, steps: int, count: int) -> Tensor:
    """Cut (batch, ..., L) into (T, ..., R); positions past L are zeros, which do not change the state."""
    x = F.pad(x, (0, steps * count - x.shape[-1])).unflatten(-1, (count, steps))
    return x.movedim((-1, -2, 0), (0, -2, -1)).flatten(-2).contiguous()


def _join(x: Tensor, batch: int, length: int) -> Tensor:
    """Join (T, ..., R) to (batch, ..., L), the inverse of `_cut`."""
    x = x.unflatten(-1, (-1, batch)).movedim((0, -2, -1), (-1, -2, 0))
    return x.flatten(-2)[..., :length]


def _recurrence(chunks: _Chunks, block: slice) -> tuple[Tensor, Tensor]:
    """Return e^{ΔA} and the weight of B_t u_t for S steps, (S, N, G, P, R) each, or (S, 1, G, P, R) for a weight Δ."""
    delta = chunks.delta[block].unsqueeze(1)
    x = delta * chunks.A
    decay = x.exp()
    if not chunks.exact:
        return decay, delta
    # e^x − 1 = tanh(x/2)(e^x + 1) has no cancellation; torch.expm1 is not vectorized for float32 on CPUs
    return decay, x.mul_(0.5).tanh_().mul_(decay + 1).div_(chunks.A)


def _run_block(chunks: _Chunks, block: slice, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run a block from the state before it, and return the state after each position, decay and weight."""
    decay, weight = _recurrence(chunks, block)
    states = weight * (chunks.u[block].unsqueeze(1) * chunks.B[block])
    for step, factor in zip(states, decay, strict=True):
        state = torch.addcmul(step, factor, state, out=step)
    return states, decay, weight


def _run_chunks(
    chunks: _Chunks, state: Tensor, y: Tensor | None = None, block_starts: list[Tensor] | None = None
) -> Tensor:
    """Run every chunk from `state`, return its last state, and fill y (T, G, P, R) and `block_starts` if given."""
    for block in chunks.blocks():
        if block_starts is not None:
            block_starts.append(state)
        states, *_ = _run_block(chunks, block, state)
        state = states[-1].clone()  # a view would keep the whole block
        if y is not None:
            torch.sum(states.mul_(chunks.C[block]), 1, out=y[block])
    return state


def _decay_of_chunks(chunks: _Chunks) -> Tensor:
    """Return the factor by which a state decays over a whole chunk, (N, G, P, R)."""
    return (chunks.A * chunks.delta.sum(0)).exp_()


def _carry(decay: Tensor, added: Tensor, state: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """Scan over chunks, and return the states that enter them, (N, G, P, R), and the state that leaves the last."""
    batch = state.shape[-1]
    decay, added = (t.unflatten(-1, (-1, batch)).unbind(-2) for t in (decay, added))
    entering = torch.empty(*state.shape[:3], len(added), batch, dtype=state.dtype, device=state.device)
    order = range(len(added))
    for chunk in reversed(order) if backwards else order:
        entering[..., chunk, :] = state
        state = torch.addcmul(added[chunk], decay[chunk], state)
    return entering.flatten(-2), state


def _advance_gradient(grad_states: Tensor, decay: Tensor, carried: Tensor) -> Tensor:
    """Run g_t = C_t ∂y_t + decay_{t+1} g_{t+1} through a block in place, and return the carry for the block before."""
    for grad, factor in zip(reversed(grad_states.unbind()), reversed(decay.unbind()), strict=True):
        carried = torch.mul(factor, grad.add_(carried))
    return carried


def _block_gradients(
    chunks: _Chunks, block: slice, start: Tensor, grad_y: Tensor, carried: Tensor, grads: _Gradients
) -> Tensor:
    """Fill in the gradients of a block of positions, and return the gradient of the state before it."""
    states, decay, weight = _run_block(chunks, block, start)
    u, B = chunks.u[block].unsqueeze(1), chunks.B[block]
    grad_y = grad_y.unsqueeze(1)
    torch.sum(states * grad_y, 3, keepdim=True, out=grads.C[block])

    grad_states = grad_y * chunks.C[block]
    carried = _advance_gradient(grad_states, decay, carried)
    delta = chunks.delta[block].unsqueeze(1)
    Bu = B * u

    # through the weight: ∂w/∂Δ is e^{ΔA} for the zero-order hold and 1 otherwise
    weighted = grad_states * weight
    torch.sum(weighted * B, 1, out=grads.u[block])
    torch.sum(weighted.mul_(u), 3, keepdim=True, out=grads.B[block])
    grad_weight = Bu.mul_(grad_states)
    if chunks.exact:
        grads.A.add_((grad_weight * _weight_by_A(delta, chunks.A, decay)).sum(0))
        grad_weight.mul_(decay)

    # through the decay: d e^{ΔA} is e^{ΔA}(A dΔ + Δ dA)
    grad_x = grad_states.mul_(decay)
    grad_x[0].mul_(start)
    grad_x[1:].mul_(states[:-1])
    torch.sum(torch.addcmul(grad_weight, grad_x, chunks.A), 1, out=grads.delta[block])
    grads.A.add_(grad_x.mul_(delta).sum(0))
    return carried


def _weight_by_A(delta: Tensor, A: Tensor, decay: Tensor) -> Tensor:
    """Return ∂/∂A of (e^{ΔA} − 1)/A, which is Δ²(x eˣ − eˣ + 1)/x² with x = ΔA.

    For small x the function sums the series Δ² Σ (k+1)/(k+2)! xᵏ.
    """
    x = delta * A
    terms = 14 if x.dtype == torch.float64 else 7
    series = torch.full_like(x, (terms + 1) / math.factorial(terms + 2))
    for k in reversed(range(terms)):
        series.mul_(x).add_((k + 1) / math.factorial(k + 2))
    small = x.abs() < 0.4
    direct = ((x - 1) * decay).add_(1).div_(torch.where(small, 1.0, x * x))
    return torch.where(small, series, direct).mul_(delta * delta)
