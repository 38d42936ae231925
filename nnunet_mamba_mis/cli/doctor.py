"""Say what is installed, which scan backends work here, whether nnU-Net finds the trainers, and what to do.

Exit status 1 if something that training needs is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nnunet_mamba_mis
from nnunet_mamba_mis import __version__

OK, NOTE, WRONG = "ok", "note", "WRONG"

# distribution → lowest version that works
REQUIRED = {
    "nnunetv2": "2.8.1",
    "torch": "2.4",
    "dynamic-network-architectures": "0.4",
    "batchgenerators": "0.25",
    "SimpleITK": "2.2",
}
NNUNET_PATHS = {
    "nnUNet_raw": "datasets in nnU-Net's raw format",
    "nnUNet_preprocessed": "preprocessed datasets; on a fast disk",
    "nnUNet_results": "trained models",
}


class Finding(NamedTuple):
    """One line of the report, and what to do about it where something is wrong."""

    status: str
    text: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(_args: argparse.Namespace) -> int:
    """Print every finding as it comes; 1 if one of them is wrong."""
    sections: dict[str, Callable[[], Iterator[Finding]]] = {
        "Installed": _packages,
        "Devices": _devices,
        "Scan backends, fastest first": _backends,
        "nnU-Net finds the trainers": _trainers,
        "nnU-Net's folders": _folders,
    }
    wrong = 0
    for title, findings in sections.items():
        print(title, flush=True)
        for finding in _guarded(findings):
            print(f"  {finding.status:5}  {finding.text}")
            if finding.remedy:
                print(f"         → {finding.remedy}")
            wrong += finding.status == WRONG
    print(f"\n{wrong} thing{'s' * (wrong != 1)} to put right." if wrong else "\nReady to train.")
    return 1 if wrong else 0


def _guarded(findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A broken installation may fail in any import: that is a finding too."""
    try:
        yield from findings()
    except Exception as error:
        yield Finding(WRONG, f"{type(error).__name__}: {error}", "reinstall into a fresh virtual environment")


def _packages() -> Iterator[Finding]:
    yield Finding(OK, f"nnunet-mamba-mis {__version__}, Python {platform.python_version()} ({sys.executable})")
    for name, lowest in REQUIRED.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(WRONG, f"{name} is not installed", f"pip install '{name}>={lowest}'")
            continue
        if _numbers(version) < _numbers(lowest):
            yield Finding(
                WRONG, f"{name} {version} is older than {lowest}", f"pip install --upgrade '{name}>={lowest}'"
            )
        else:
            yield Finding(OK, f"{name} {version}")
    yield from _torchvision()
    for name in ("mamba-ssm", "causal-conv1d"):
        try:
            yield Finding(OK, f"{name} {importlib.metadata.version(name)} (optional)")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(NOTE, f"{name} is not installed (optional, nothing needs it)")


def _torchvision() -> Iterator[Finding]:
    try:
        importlib.import_module("torchvision")
    except ImportError:
        yield Finding(WRONG, "torchvision is not installed, nnU-Net needs it", "pip install torchvision")
    except RuntimeError as error:
        remedy = "install torch and torchvision from one index: pip install --force-reinstall torch torchvision"
        yield Finding(WRONG, f"torchvision does not fit torch ({error})", remedy)


def _numbers(version: str) -> tuple[int, ...]:
    release = version.split("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release[:3])


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding(OK, f"CPU: {torch.get_num_threads()} threads for torch, {os.cpu_count()} cores")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            yield Finding(OK, f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda is None:
        yield Finding(NOTE, "no GPU: this torch was built without CUDA. Train with -device cpu")
    else:
        yield Finding(
            NOTE, f"no GPU: torch (for CUDA {torch.version.cuda}) sees no driver or device. Train with -device cpu"
        )


def _backends() -> Iterator[Finding]:
    import torch

    from nnunet_mamba_mis.ops import native_library as native
    from nnunet_mamba_mis.ops import selective_scan, selective_scan_reference
    from nnunet_mamba_mis.ops.selective_scan.registry import BACKENDS

    torch.manual_seed(0)
    arguments = (torch.randn(1, 2, 50), torch.rand(1, 2, 50), -torch.rand(2, 4), *torch.randn(2, 1, 4, 50))
    expected = selective_scan_reference(*arguments)
    for name, backend in BACKENDS.items():
        reason = backend.why_unavailable()
        if reason is not None:
            yield Finding(NOTE, f"{name}: {reason}")
            continue
        device = backend.device() or "cpu"
        try:
            actual = selective_scan(*(t.to(device) for t in arguments), backend=name)
        except Exception as problem:
            yield Finding(WRONG, f"{name} fails on {device}: {problem}", "please report this")
            continue
        error = float((actual.cpu() - expected).abs().max())  # type: ignore[union-attr, operator]
        if error < 1e-4:
            code = f" ({native.instruction_sets()[0]} code)" if name == "cpp" else ""
            yield Finding(OK, f"{name}: works{code}, off by {error:.0e} from the reference on {device}")
        else:
            yield Finding(WRONG, f"{name}: wrong by {error:.0e} on {device}", "please report this")


def _trainers() -> Iterator[Finding]:
    variable = os.environ.get("nnUNet_extTrainer", "")
    folder = Path(nnunet_mamba_mis.__file__).resolve().parent / "nnunet_ext_trainers"
    listed = [Path(entry).resolve() for entry in variable.split(os.pathsep) if entry]
    if folder not in listed:
        yield Finding(
            WRONG,
            f"nnUNet_extTrainer ({variable or 'not set'}) does not hold our folder: Python did not read "
            "nnunet_mamba_mis.pth, as happens with `pip install --target`, or the variable was overwritten after start",
            f"install into a virtual environment, or export nnUNet_extTrainer={folder}",
        )
        return
    yield Finding(OK, f"nnUNet_extTrainer holds {folder}")

    # nnU-Net imports all its own trainers first, which takes seconds, and tells of each step
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_mamba_mis import trainers

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        found = recursive_find_trainer_class_by_name("nnUNetTrainerMambaMIS")
    if found is trainers.nnUNetTrainerMambaMIS:
        yield Finding(OK, f"-tr nnUNetTrainerMambaMIS, and {len(trainers.__all__) - 1} variants of it")
    else:
        module = sys.modules.get(found.__module__)
        origin = getattr(module, "__file__", found.__module__)
        yield Finding(WRONG, f"another nnUNetTrainerMambaMIS is found first: {origin}", "remove it, or its folder from "
                      "nnUNet_extTrainer")  # fmt: skip


def _folders() -> Iterator[Finding]:
    for name, purpose in NNUNET_PATHS.items():
        value = os.environ.get(name)
        if not value:
            yield Finding(WRONG, f"{name} is not set", f"export {name}=/path/for/{name}   # {purpose}")
        elif not Path(value).is_dir():
            yield Finding(WRONG, f"{name}={value} is not a folder", f"mkdir -p '{value}'")
        elif not os.access(value, os.W_OK):
            yield Finding(WRONG, f"{name}={value} is not writable", "choose a folder you may write to")
        else:
            yield Finding(OK, f"{name}={value}")
