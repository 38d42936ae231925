"""Resample spectral gates from one patch size to another.

A gate computes y = h ⊛ x + p. Its weight W is the transfer function of the filter h; its bias is the spectrum of an
image p. Both are stored at the frequencies of one grid, k/n cycles per pixel along an axis of n pixels, so the same
numbers have another meaning on another grid:

- The filter acts alike everywhere in the image, so the same content must meet the same filter: resampling preserves
  the response at each frequency in cycles *per pixel*. Between the stored frequencies, the response is the transform
  G(f) = Σ h(t) e^{−2πift} of the filter h, with taps t from −n/2 to n/2; the new weight is G at the new frequencies.
  This is band-limited interpolation along frequency. On a larger grid, it pads h with zeros. On a smaller grid, taps
  that reach beyond the grid wrap around, as in periodic images. Hence a filter shorter than both grids is unchanged,
  and frequencies that both grids share keep their weights.
- The image p is tied to positions in the patch, like position embeddings, which are interpolated between patch sizes
  (Dosovitskiy et al. 2021, section 3.2). So p is resized: its spectrum keeps its place in cycles *per patch*. A
  constant image stays constant, with the same value.

Resampling to a larger grid and back restores the gate. On an even axis, tap or frequency n/2 is also −n/2: its value is
split equally between the two, which keeps real values real, and the halves are summed on the way back. In the columns
of frequency 0 and n/2, `irfft2` reads only the Hermitian part of a weight, so only that part is carried over.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate

Size = tuple[int, int]


def resample_spectral_gates(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return weights for `network.load_state_dict`, resampled from those of the same network for another patch size.

    Args:
        state_dict: Weights, by their names in the network.
        network: The network to load them into.

    Returns:
        All weights: new tensors for the gates in `gates_to_resample`, the same tensors for the rest.
    """
    fitting = dict(state_dict)
    for name, (old, new) in gates_to_resample(state_dict, network).items():
        fitting[f"{name}.weight"] = resample_weight(state_dict[f"{name}.weight"], old, new)
        fitting[f"{name}.bias"] = resample_bias(state_dict[f"{name}.bias"], old, new)
    return fitting


def gates_to_resample(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, tuple[Size, Size]]:
    """Return the old and the new height and width of each gate whose weights belong to another grid than the network's.

    The result is empty if all gates fit. It omits gates that the weights lack or whose channels differ: resampling
    cannot make them fit.
    """
    gates = {name: gate for name, gate in network.named_modules() if isinstance(gate, SpectralGate)}
    gates = {name: gate for name, gate in gates.items() if _same_channels(state_dict.get(f"{name}.weight"), gate)}
    if not gates:
        return {}
    # n // 2 + 1 columns do not tell whether n is even; on the finest grid, n is even, because it is a multiple of 8
    finest = max(gates, key=lambda name: gates[name].size)
    rows, columns = state_dict[f"{finest}.weight"].shape[:2]
    old_finest, new_finest = (rows, 2 * (columns - 1)), gates[finest].size
    if old_finest == new_finest:
        return {}
    sizes = {name: (_scale(gate.size, old_finest, new_finest), gate.size) for name, gate in gates.items()}
    return {name: (old, new) for name, (old, new) in sizes.items() if _fits(state_dict[f"{name}.weight"], old)}


def resample_weight(weight: Tensor, old: Size, new: Size) -> Tensor:
    """Resample a transfer function to the frequencies of another grid.

    Args:
        weight: (old H, old W // 2 + 1, C, 2), real and imaginary part last.
        old: Height and width of its grid.
        new: Height and width of the new grid.

    Returns:
        (new H, new W // 2 + 1, C, 2).
    """
    taps = torch.fft.irfft2(_as_complex(weight), s=old, dim=(0, 1))
    rows, columns = (_places(n, m, wrap=True) for n, m in zip(old, new, strict=True))
    moved = torch.einsum("hi, wj, ijc -> hwc", rows, columns, taps)
    return _as_stored(torch.fft.rfft2(moved, dim=(0, 1)), weight)


def resample_bias(bias: Tensor, old: Size, new: Size) -> Tensor:
    """Resize the image whose spectrum is the bias; arguments and result are as in `resample_weight`."""
    image = torch.fft.irfft2(_as_complex(bias), s=old, dim=(0, 1), norm="ortho")
    rows, columns = (_places(n, m, wrap=False).to(torch.complex128) for n, m in zip(old, new, strict=True))
    spectrum = torch.fft.fft2(image, dim=(0, 1), norm="forward")
    resized = torch.fft.ifft2(torch.einsum("hi, wj, ijc -> hwc", rows, columns, spectrum), dim=(0, 1), norm="forward")
    return _as_stored(torch.fft.rfft2(resized.real, dim=(0, 1), norm="ortho"), bias)


def _places(n: int, m: int, wrap: bool) -> Tensor:
    """Return the (m, n) matrix that maps n taps or frequencies around 0 to m; those beyond m wrap or are dropped."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for i in range(-(n // 2), n // 2 + 1):
        if wrap or 2 * abs(i) <= m:
            matrix[i % m, i % n] += 0.5 if 2 * abs(i) == n else 1.0
    return matrix


def _as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.detach().to("cpu", torch.float64).contiguous())


def _as_stored(x: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_real(x).to(like.device, like.dtype).contiguous()


def _same_channels(weight: Tensor | None, gate: SpectralGate) -> bool:
    return weight is not None and weight.dim() == 4 and weight.shape[2:] == gate.weight.shape[2:]


def _scale(size: Size, old_finest: Size, new_finest: Size) -> Size:
    return (size[0] * old_finest[0] // new_finest[0], size[1] * old_finest[1] // new_finest[1])


def _fits(weight: Tensor, size: Size) -> bool:
    return tuple(weight.shape[:2]) == (size[0], size[1] // 2 + 1)
