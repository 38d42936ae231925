"""rfft2 and irfft2 as products with the grid's matrices of cosines and sines, for ONNX."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ORTHO = 1  # of torch's enum of normalizations


def _matrix(rows: int, columns: int, period: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2π · row · column / period, (rows, columns) each."""
    # whole turns are taken off as integers: large angles would lose digits
    turns = torch.outer(torch.arange(rows, device=like.device), torch.arange(columns, device=like.device)) % period
    angle = turns.to(torch.float64) * (2 * math.pi / period)
    return torch.cos(angle).to(like.dtype), torch.sin(angle).to(like.dtype)


def _rotation(size: int, sign: int, like: Tensor) -> Tensor:
    """The complex matrix e^{±2πi jk/size}/√size on (real, imaginary) stacked, (2·size, 2·size)."""
    real, imaginary = _matrix(size, size, size, like)
    imaginary = sign * imaginary
    rows = torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)
    return torch.cat(rows) / math.sqrt(size)


def rfft2(x: Tensor) -> Tensor:
    """Ortho rfft2 over the middle axes: (B, H, W, C) → complex (B, H, W//2+1, C)."""
    _, height, width, channels = x.shape
    half = width // 2 + 1
    real, imaginary = _matrix(half, width, width, x)
    by_width = torch.cat([real, -imaginary]) / math.sqrt(width)
    y = by_width @ x.transpose(1, 2).flatten(2)  # (B, 2·half, H·C)
    y = y.unflatten(1, (2, half)).unflatten(3, (height, channels)).transpose(2, 3)  # (B, 2, H, half, C)
    y = _rotation(height, -1, x) @ y.flatten(3).flatten(1, 2)
    y = y.unflatten(1, (2, height)).unflatten(3, (half, channels))
    return torch.view_as_complex(y.movedim(1, -1).contiguous())


def irfft2(x: Tensor, width: int) -> Tensor:
    """Ortho irfft2 over the middle axes: complex (B, H, W//2+1, C) → (B, H, W, C)."""
    _, height, half, channels = x.shape
    y = torch.view_as_real(x).movedim(-1, 1)  # (B, 2, H, half, C)
    y = _rotation(height, 1, y) @ y.flatten(3).flatten(1, 2)
    y = y.unflatten(1, (2, height)).unflatten(3, (half, channels)).transpose(2, 3)  # (B, 2, half, H, C)
    real, imaginary = _matrix(width, half, width, y)
    # each frequency stands for its negative too, but 0 and half the sampling rate
    twice = torch.arange(half, device=x.device)
    twice = torch.where((twice == 0) | (2 * twice == width), 1.0, 2.0).to(y.dtype)
    by_width = torch.cat([real * twice, -imaginary * twice], 1) / math.sqrt(width)
    y = by_width @ y.flatten(3).flatten(1, 2)  # (B, W, H·C)
    return y.unflatten(2, (height, channels)).transpose(1, 2)


def decompose_fft_r2c(x: Tensor, dim: list[int], normalization: int, onesided: bool) -> Tensor:
    """`aten._fft_r2c` as a spectral gate calls it."""
    if list(dim) != [1, 2] or normalization != _ORTHO or not onesided:
        return NotImplemented
    return rfft2(x)


def decompose_fft_c2r(x: Tensor, dim: list[int], normalization: int, last_dim_size: int) -> Tensor:
    """`aten._fft_c2r` as a spectral gate calls it."""
    if list(dim) != [1, 2] or normalization != _ORTHO:
        return NotImplemented
    return irfft2(x, last_dim_size)


def decompose_addcmul(bias: Tensor, x: Tensor, weight: Tensor, *, value: float = 1) -> Tensor:
    """`aten.addcmul`, of complex tensors on their real and imaginary parts."""
    if not x.is_complex():
        return bias + value * x * weight
    bias, x, weight = (torch.view_as_real(t) for t in (bias, x, weight))
    real = x[..., 0] * weight[..., 0] - x[..., 1] * weight[..., 1]
    imaginary = x[..., 0] * weight[..., 1] + x[..., 1] * weight[..., 0]
    return torch.view_as_complex(bias + value * torch.stack([real, imaginary], -1))
