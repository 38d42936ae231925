"""Replace spectral gates by real matrix products for ONNX, whose runtimes have slow Fourier transforms or none."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from nnunet_mamba_mis.architectures.spectral_gate import SpectralGate

Network = TypeVar("Network", bound=nn.Module)


class MatrixSpectralGate(nn.Module):
    """A spectral gate that computes rfft2 and irfft2 as products with matrices of cosines and sines.

    Args:
        gate: Spectral gate to replace.
    """

    weight: Tensor
    bias: Tensor
    to_columns: Tensor
    rotation: Tensor
    back_rotation: Tensor
    from_columns: Tensor

    def __init__(self, gate: SpectralGate) -> None:
        super().__init__()
        height, width = gate.size
        self.frequencies = half = width // 2 + 1
        to_columns, from_columns = _row_transforms(width, half)
        rotation = _rotation(height)
        # (2, C, H, W // 2 + 1)
        for name, grid in (("weight", gate.weight), ("bias", gate.bias)):
            self.register_buffer(name, grid.detach().permute(3, 2, 0, 1).contiguous())
        dtype = gate.weight.dtype
        self.register_buffer("to_columns", to_columns.to(dtype))
        self.register_buffer("rotation", rotation.to(dtype))
        self.register_buffer("back_rotation", rotation.mT.contiguous().to(dtype))
        self.register_buffer("from_columns", from_columns.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gate to x (B, H, W, C)."""
        height = x.shape[1]
        y = x.permute(0, 3, 1, 2) @ self.to_columns  # real parts, then imaginary ones
        y = self.rotation @ torch.cat([y[..., : self.frequencies], y[..., self.frequencies :]], 2)
        real, imaginary = y[:, :, :height], y[:, :, height:]
        weight, bias = self.weight, self.bias
        y = torch.cat(
            [
                real * weight[0] - imaginary * weight[1] + bias[0],
                real * weight[1] + imaginary * weight[0] + bias[1],
            ],
            2,
        )
        y = self.back_rotation @ y
        y = torch.cat([y[:, :, :height], y[:, :, height:]], 3) @ self.from_columns
        return y.permute(0, 2, 3, 1)


def with_matrix_gates(network: Network) -> Network:
    """Return a copy of the network in which every spectral gate is a `MatrixSpectralGate`."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, SpectralGate):
                setattr(module, name, MatrixSpectralGate(child))
    return network


def _waves(rows: int, columns: int, period: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of 2π · row · column / period, (rows, columns) each."""
    # remove whole turns in integer arithmetic, as large angles lose digits
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % period
    angle = turns.to(torch.float64) * (2 * math.pi / period)
    return torch.cos(angle), torch.sin(angle)


def _row_transforms(width: int, half: int) -> tuple[Tensor, Tensor]:
    """Return the orthonormal rfft of rows as (W, 2 · half), real parts first, and its inverse as (2 · half, W)."""
    cosines, sines = _waves(width, half, width)
    forward = torch.cat([cosines, -sines], 1) / math.sqrt(width)
    # each frequency also stands for its negative, except 0 and half the sampling rate
    frequency = torch.arange(half)
    twice = torch.where((frequency == 0) | (2 * frequency == width), 1.0, 2.0)
    return forward, (forward * twice.repeat(2)).mT.contiguous()


def _rotation(size: int) -> Tensor:
    """Return the orthonormal Fourier transform of stacked real and imaginary parts, (2 · size, 2 · size)."""
    # the matrix is orthogonal, so its inverse is its transpose
    cosines, sines = _waves(size, size, size)
    rows = torch.cat([cosines, sines], 1), torch.cat([-sines, cosines], 1)
    return torch.cat(rows) / math.sqrt(size)
