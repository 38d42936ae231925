"""Inspect packages, devices, scan backends, native code, nnU-Net's access to our trainers, and nnU-Net's folders."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

import nnunet_mamba_mis
from nnunet_mamba_mis import __version__
from nnunet_mamba_mis.nnunet import paths
from nnunet_mamba_mis.nnunet.environment import check_variables
from nnunet_mamba_mis.utils.errors import UserError

OK, NOTE, WRONG = "ok", "note", "WRONG"
DISTRIBUTION = "nnunet-mamba-mis"


class Finding(NamedTuple):
    """A fact about the installation, with a remedy if it is a problem."""

    status: str
    text: str
    remedy: str = ""


def inspect_installation() -> Iterator[tuple[str, Iterator[Finding]]]:
    """Yield the title and the findings of each section. Findings are computed lazily, during iteration."""
    yield "Installed", _guarded(_packages())
    yield "Devices", _guarded(_devices())
    yield "Scan backends, fastest first", _guarded(_backends())
    yield "Native code for CPUs", _guarded(_native_code())
    yield "nnU-Net finds the trainers", _guarded(_trainers())
    yield "nnU-Net's folders", _guarded(_folders())


def _guarded(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Turn an exception into a finding: a broken installation may fail in any import."""
    try:
        yield from findings
    except Exception as error:
        yield Finding(WRONG, f"{type(error).__name__}: {error}", "reinstall into a fresh virtual environment")


def _packages() -> Iterator[Finding]:
    yield Finding(OK, f"{DISTRIBUTION} {__version__}, Python {platform.python_version()} ({sys.executable})")
    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        problem = f"{DISTRIBUTION} runs without installation, so the versions of its requirements are not checked"
        yield Finding(WRONG, problem, "install it with pip into a virtual environment")
        requirements = []
    for requirement in requirements:
        if requirement.specifier and requirement.marker is None:
            yield _package(requirement)
    yield from _torchvision()
    for requirement in requirements:
        if requirement.marker and str(requirement.marker) == 'extra == "cuda"':
            yield _package(requirement, optional=True)


def _package(requirement: Requirement, optional: bool = False) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if optional:
            return Finding(NOTE, f"{requirement.name} is not installed (optional)")
        return Finding(WRONG, f"{requirement.name} is not installed", f"pip install '{requirement}'")
    installed = f"{requirement.name} {version}"
    if optional:
        return Finding(OK, f"{installed} (optional)")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(WRONG, f"{installed} is not {requirement.specifier}", f"pip install '{requirement}'")
    return Finding(OK, installed)


def _torchvision() -> Iterator[Finding]:
    try:
        importlib.import_module("torchvision")
    except ImportError:
        yield Finding(WRONG, "torchvision is not installed, but nnU-Net needs it", "pip install torchvision")
    except RuntimeError as error:
        remedy = "install torch and torchvision from the same index: pip install --force-reinstall torch torchvision"
        yield Finding(WRONG, f"torchvision does not match torch ({error})", remedy)


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
            NOTE, f"no GPU: torch (for CUDA {torch.version.cuda}) finds no driver or device. Train with -device cpu"
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
            code = f" ({native.instruction_set()} code)" if name == "cpp" else ""
            yield Finding(OK, f"{name}: works{code}, error {error:.0e} against the reference on {device}")
        else:
            yield Finding(WRONG, f"{name}: error {error:.0e} against the reference on {device}", "please report this")


def _native_code() -> Iterator[Finding]:
    from nnunet_mamba_mis.ops import native_library as native

    yield Finding(OK, _kind_of_installation())
    if not native.available():
        yield Finding(NOTE, "no native code: see cpp above")
        return
    used, threads = native.instruction_set(), native.threads()
    source = "of torch's OpenMP runtime" if threads.parallel else "of its own"
    yield Finding(OK, f"{used} code on {threads.count} thread{'s' * (threads.count != 1)} {source}")
    best_built, best = native.instruction_sets()[0], native.machine_instruction_sets()[0]
    if best != best_built:
        yield Finding(NOTE, f"this machine has {best}, which is faster, but {best} code is not installed",
                      "reinstall: pip install --force-reinstall --no-deps nnunet-mamba-mis")  # fmt: skip
    if used != best_built:
        yield Finding(NOTE, f"{best_built} code is faster on this machine", f"unset {native.VARIABLE}")
    if used == best:
        yield Finding(OK, f"{best} is the fastest instruction set of this machine with native code")


def _kind_of_installation() -> str:
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "run from the source tree"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return f"editable installation of {origin['url'].removeprefix('file://')}, compiled here"
    tags = [line.split("-")[-1] for line in (distribution.read_text("WHEEL") or "").splitlines() if "Tag: " in line]
    platforms = ", ".join(tags) or "an unknown platform"
    # on Linux, a wheel that pip compiles at installation has a tag without a version of the C library
    kind = "compiled at installation" if platforms.startswith("linux_") else "wheel"
    return f"{kind} for {platforms}"


def _trainers() -> Iterator[Finding]:
    variable = os.environ.get("nnUNet_extTrainer", "")
    folder = Path(nnunet_mamba_mis.__file__).resolve().parent / "nnunet_ext_trainers"
    listed = [Path(entry).resolve() for entry in variable.split(os.pathsep) if entry]
    if folder not in listed:
        yield Finding(
            WRONG,
            f"nnUNet_extTrainer ({variable or 'not set'}) lacks this package's folder: Python did not read "
            "nnunet_mamba_mis.pth, as after `pip install --target`, or the variable was overwritten after start",
            f"install into a virtual environment, or export nnUNet_extTrainer={folder}",
        )
        return
    yield Finding(OK, f"nnUNet_extTrainer contains {folder}")
    try:
        check_variables()
    except UserError as error:
        problem, remedy = str(error).rsplit(": ", 1)
        yield Finding(WRONG, problem, remedy)
        return

    # nnU-Net imports all its own trainers first, which takes seconds, and prints each step
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_mamba_mis import trainers

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        trainer = recursive_find_trainer_class_by_name("nnUNetTrainerMambaMIS")
    if trainer is trainers.nnUNetTrainerMambaMIS:
        yield Finding(
            OK, f"-tr nnUNetTrainerMambaMIS, and {len(trainers.__all__) - 1} others, each in any length (_50epochs)"
        )
    else:
        module = sys.modules.get(trainer.__module__)
        origin = getattr(module, "__file__", trainer.__module__)
        problem = f"nnU-Net finds another nnUNetTrainerMambaMIS first: {origin}"
        yield Finding(WRONG, problem, "remove it, or its folder from nnUNet_extTrainer")


def _folders() -> Iterator[Finding]:
    for variable in paths.FOLDERS:
        try:
            value = paths.folder(variable)
        except UserError as error:
            problem, remedy = str(error).split(": ", 1)
            yield Finding(WRONG, problem, remedy)
            continue
        if not value.is_dir():
            yield Finding(WRONG, f"{variable}={value} is not a folder", f"mkdir -p '{value}'")
        elif not os.access(value, os.W_OK):
            yield Finding(WRONG, f"{variable}={value} is not writable", "choose a folder you may write to")
        else:
            yield Finding(OK, f"{variable}={value}")
