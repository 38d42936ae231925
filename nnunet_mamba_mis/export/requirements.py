"""What has to be there before an export starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from nnunet_mamba_mis.utils.errors import UserError

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check(formats: list[str], output: Path) -> None:
    """Check packages, compiler and output folder.

    Raises:
        UserError: Something is missing, or the folder holds files.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise UserError(
            f"format onnx needs {', '.join(missing)}: pip install 'nnunet-mamba-mis[export]', "
            "or leave it out with --format pt2"
        )
    if "aoti" in formats and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("format aoti needs a C++ compiler (Debian, Ubuntu: apt install g++), or leave it out")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already and not empty: name another folder with -o, or remove it")
