"""The selective scan behind one signature."""

from __future__ import annotations

from torch import Tensor

from nnunet_mamba_mis.ops.selective_scan import registry
from nnunet_mamba_mis.ops.selective_scan.inputs import ScanInputs


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    discretization: str = "mamba",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the selective scan h_t = e^{ΔA} h_{t−1} + w_t B_t u_t, y_t = ⟨C_t, h_t⟩ + D u_t, from a zero state.

    The function replaces mamba_ssm's `selective_scan_fn` on every device. It computes in float32 (float64 for float64
    u), even under autocast, and accepts any strides. Positions may have two axes, with (H, W) instead of L everywhere:
    the scan then runs along W, then H. To scan an image x in column-major order, pass `x.mT`, which the native backend
    does not copy.

    Args:
        u: Input, (batch, D, L) or (batch, D, H, W).
        delta: Step sizes before bias and softplus, (batch, D, L).
        A: State matrix, (D, N), real.
        B: Input weights, (batch, N, L), or (batch, G, N, L), where each of G groups serves D/G neighbouring channels.
        C: Output weights, shaped as B.
        D: Skip weights, (D,).
        z: Gate, (batch, D, L); the output is multiplied by SiLU(z).
        delta_bias: Bias added to delta, (D,).
        delta_softplus: Whether to apply softplus to delta after the bias.
        return_last_state: Whether to return the state after position L too.
        discretization: "mamba" for w = Δ, as in the Mamba papers' code, or "zoh" for w = (e^{ΔA} − 1)/A, the exact
            zero-order hold (Gu and Dao 2023, equation 4).
        backend: A name from `available_backends()`, or "auto" for the fastest suitable backend. A named backend never
            falls back to another.

    Returns:
        y (batch, D, L) in u's dtype; with return_last_state also the last state (batch, D, N), float32 or float64.

    Raises:
        ValueError: A shape, dtype, discretization or backend name is wrong.
        RuntimeError: The named backend does not work on this machine or for these arguments.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization).checked()
    if backend == "auto":
        chosen = registry.fastest_backend(u, discretization)
    else:
        chosen = registry.named_backend(backend, u, discretization)
    y, last_state = chosen.scan(inputs)
    y = y.view(u.shape).to(u.dtype)
    return (y, last_state) if return_last_state else y
