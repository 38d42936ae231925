"""Check the requirements of an export before it starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check(formats: list[str], output: Path) -> None:
    """Check for packages, a compiler and an empty output folder.

    Raises:
        UserError: A package or the compiler is missing, or the output folder is not empty.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise UserError(
            f"format onnx needs {', '.join(missing)}: pip install 'nnunet-mamba-mis[export]', "
            "or export without it: --format pt2"
        )
    if "aoti" in formats and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError(
            "format aoti needs a C++ compiler: install one (Debian, Ubuntu: apt install g++), or export without aoti"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} already exists and is not empty: choose another folder with -o, or remove it")
