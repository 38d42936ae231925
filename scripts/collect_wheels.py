#!/usr/bin/env python3
"""Collect the wheels for running this package on a machine that has torch and Triton but no network.

The script writes folders OUT/part1, part2, … of at most --megabytes each, for `gpu_first_hour.sh --bring`. They hold
this package (built here), nnU-Net, pytest, hypothesis and their dependencies, except torch, Triton and CUDA's packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIREMENTS = ["pytest", "hypothesis"]
# pure Python packages for which PyPI has no wheel
WITHOUT_WHEEL = ["acvl_utils"]
# constraints to remove, as the machine may have another torch: nnU-Net needs timm, timm needs torchvision, and the
# version of torchvision depends on torch's
OTHER_TORCH = re.compile(r"^(torch|torchvision)==.*$", re.MULTILINE)
GLIBC = range(17, 40)


def main() -> None:
    """Resolve, download and build the wheels, and split them into parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist or must be empty")
    parser.add_argument("--python", default="3.12", help="Python version of the machine (default: %(default)s)")
    parser.add_argument("--torch", default="2.11.0", help="torch version of the machine (default: %(default)s)")
    have = "file with the output of `pip list --format=freeze` on the machine: packages in it are left out unless "
    have += "another version is needed"
    parser.add_argument("--have", metavar="FILE", type=Path, help=have)
    parser.add_argument("--megabytes", type=int, default=60, help="largest size of a part (default: %(default)s)")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"{args.out} is not empty: choose another folder, or empty it")
    if args.have and not args.have.is_file():
        sys.exit(f"--have {args.have} does not exist: write it with `pip list --format=freeze` on the machine")
    listed = re.findall(r"^([\w.-]+)==(\S+)", args.have.read_text(), re.MULTILINE) if args.have else []
    installed = {canonical(name): version for name, version in listed}
    with tempfile.TemporaryDirectory() as work:
        wheels = Path(work, "wheels")
        collect(Path(work), wheels, args.python, args.torch, installed)
        checksums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(wheels.iterdir()))
        parts = split(sorted(wheels.iterdir()), args.megabytes * 10**6 - len(checksums))  # every part has checksums too
        for number, part in enumerate(parts, 1):
            folder = args.out / f"part{number}"
            folder.mkdir(parents=True)
            (folder / "wheels.sha256").write_text(checksums)
            for piece in part:
                piece.write(folder)
            show(folder)


def collect(work: Path, wheels: Path, python: str, torch: str, installed: dict[str, str]) -> None:
    """Fill the folder `wheels`, without packages of which the machine has a suitable version."""
    pip("wheel", "--no-deps", "-w", wheels, *WITHOUT_WHEEL)
    pip("wheel", "--no-deps", "-w", wheels, REPOSITORY)
    shutil.rmtree(REPOSITORY / "build", ignore_errors=True)
    (own,) = wheels.glob("nnunet_mamba_mis-*.whl")
    constraints = work / "constraints.txt"
    constraints.write_text(OTHER_TORCH.sub("", (REPOSITORY / "constraints.txt").read_text()))
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64", "--platform=linux_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    target += ["--find-links", str(wheels)]
    report = work / "report.json"
    pip("install", "--dry-run", "--ignore-installed", "--target", work / "nowhere", "--report", report, *target,
        "-c", constraints, torch_placeholder(work, torch), own, *REQUIREMENTS)  # fmt: skip
    chosen = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    suitable = {"torch", *installed} - unsuitable(chosen, python, installed)
    pins = [f"{p['name']}=={p['version']}" for p in chosen if canonical(p["name"]) not in suitable]
    pip("download", "--no-deps", "-d", wheels, *target, *pins)


def unsuitable(chosen: list[dict], python: str, installed: dict[str, str]) -> set[str]:
    """Return the names of installed packages whose version does not meet the requirements of a chosen package."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    requirements = [Requirement(text) for package in chosen for text in package.get("requires_dist", [])]
    return {
        name
        for r in requirements
        if (name := canonical(r.name)) in installed and (r.marker is None or r.marker.evaluate(environment))
        if not r.specifier.contains(installed[name], prereleases=True)
    }


def torch_placeholder(work: Path, version: str) -> Path:
    """Write an empty wheel of torch without dependencies: the GPU machine has the real torch and its dependencies."""
    path = work / f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        folder = f"torch-{version}.dist-info"
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")
    return path


def pip(*arguments: object) -> None:
    """Run pip, and exit with its status if it fails."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    command += ["--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


def canonical(name: str) -> str:
    """Normalize a name as package indexes do to compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Piece(NamedTuple):
    """A range of bytes of a wheel, usually all of them."""

    path: Path
    start: int
    size: int
    name: str

    def write(self, folder: Path) -> None:
        """Copy the bytes into a file in `folder`."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            (folder / self.name).write_bytes(file.read(self.size))


def split(paths: list[Path], limit: int) -> list[list[Piece]]:
    """Distribute wheels over parts of at most `limit` bytes; larger wheels are cut into NAME.000, NAME.001, …"""
    pieces = []
    for path in paths:
        whole = path.stat().st_size
        for number, start in enumerate(range(0, whole, limit)):
            name = path.name if whole <= limit else f"{path.name}.{number:03d}"
            pieces.append(Piece(path, start, min(limit, whole - start), name))
    parts: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.size):
        fitting = (part for part in parts if sum(other.size for other in part) + piece.size <= limit)
        part = next(fitting, None)
        if part is None:
            parts.append(part := [])
        part.append(piece)
    return parts


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def show(folder: Path) -> None:
    """Print the size of a folder and of its files, largest first."""
    sizes = sorted(((path.stat().st_size, path.name) for path in folder.iterdir()), reverse=True)
    print(f"{folder}: {sum(size for size, _ in sizes) / 1e6:.1f} MB, {len(sizes)} files")
    for size, name in sizes:
        print(f"  {size / 1e6:6.1f}  {name}")


if __name__ == "__main__":
    main()
