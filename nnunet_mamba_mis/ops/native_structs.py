"""Structs of csrc/*.h, mirrored with ctypes. Loading the library checks their sizes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

SCAN_INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "weight", "weight_bc")


def _fields(kind: Any, names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class Threads(ctypes.Structure):
    """Threads of csrc/threads.h."""

    _fields_ = (("count", ctypes.c_int64), ("parallel", ctypes.c_void_p))


class ScanProblem(ctypes.Structure):
    """ScanProblem of csrc/scan.h."""

    _fields_ = (
        *_fields(ctypes.c_int64, ("batch", "channels", "groups", "states", "outer", "inner")),
        *_fields(ctypes.c_void_p, SCAN_INPUTS),
        *_fields(ctypes.c_int64 * 4, ("u_strides", "delta_strides", "z_strides")),
        *_fields(ctypes.c_int64 * 5, ("B_strides", "C_strides")),
        *_fields(ctypes.c_void_p, ("y", "last_state", "starts")),
        ("y_strides", ctypes.c_int64 * 4),
        *_fields(ctypes.c_void_p, ("grad_y", "grad_last_state")),
        ("grad_y_strides", ctypes.c_int64 * 4),
        *_fields(ctypes.c_void_p, (f"grad_{name}" for name in SCAN_INPUTS)),
        *_fields(ctypes.c_int64 * 4, ("grad_u_strides", "grad_delta_strides", "grad_z_strides")),
        *_fields(ctypes.c_int64 * 5, ("grad_B_strides", "grad_C_strides")),
        *_fields(ctypes.c_int32, ("is_double", "softplus", "exact", "A_is_log", "add_grad_u")),
        ("threads", Threads),
    )


class PixelTensor(ctypes.Structure):
    """PixelTensor of csrc/pixelwise.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("strides", ctypes.c_int64 * 4),
        ("add", ctypes.c_int64),
    )


class PixelLayer(ctypes.Structure):
    """PixelLayer of csrc/pixelwise.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("channels", ctypes.c_int64),
        *_fields(ctypes.c_void_p, ("weight", "bias", "grad_weight", "grad_bias")),
        ("eps", ctypes.c_double),
    )


class PixelProblem(ctypes.Structure):
    """PixelProblem of csrc/pixelwise.h."""

    _fields_ = (
        ("threads", Threads),
        ("is_double", ctypes.c_int32),
        *_fields(ctypes.c_int64, ("batch", "height", "width", "layers")),
        ("tensor", ctypes.POINTER(PixelTensor)),
        ("grad", ctypes.POINTER(PixelTensor)),
        ("layer", ctypes.POINTER(PixelLayer)),
        ("y", PixelTensor),
    )


class ImageProblem(ctypes.Structure):
    """ImageProblem of csrc/image.h."""

    _fields_ = (
        ("threads", Threads),
        *_fields(ctypes.c_int32, ("is_double", "silu")),
        *_fields(ctypes.c_int64, ("batch", "height", "width", "channels", "y_height", "y_width")),
        ("x", ctypes.c_void_p * 3),
        *_fields(ctypes.c_void_p, ("weight", "bias", "y", "kept", "grad_y")),
        ("grad_x", ctypes.c_void_p * 3),
        *_fields(ctypes.c_void_p, ("grad_weight", "grad_bias")),
        ("add", ctypes.c_int64 * 3),
    )


class ProgramStep(ctypes.Structure):
    """ProgramStep of csrc/program.h."""

    _fields_ = (("kind", ctypes.c_int64), ("problem", ctypes.c_void_p))


class Program(ctypes.Structure):
    """Program of csrc/program.h."""

    _fields_ = (("threads", Threads), ("count", ctypes.c_int64), ("steps", ctypes.c_void_p))


STRUCTS: tuple[type[ctypes.Structure], ...] = (
    Threads,
    ScanProblem,
    PixelTensor,
    PixelLayer,
    PixelProblem,
    ImageProblem,
    ProgramStep,
    Program,
)
