#!/usr/bin/env python3
"""Collect the wheels that a machine with torch and Triton, but without a network, lacks to run this package.

They come as folders OUT/part1, part2, … of at most --megabytes each, for `gpu_first_hour.sh --bring`: nnU-Net, pytest,
what they need, and this package, built here. torch, Triton and CUDA's packages stay out.
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
# on PyPI without a wheel; pure Python
WITHOUT_WHEEL = ["acvl_utils"]
# pinned for another torch; torchvision, which timm needs and nnU-Net timm, belongs to a version of torch
UNLIKE_THERE = re.compile(r"^(torch|torchvision)==.*$", re.MULTILINE)
GLIBC = range(17, 40)


def main() -> None:
    """Resolve, download, build, and sort into parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder, which must not exist or be empty")
    parser.add_argument("--python", default="3.12", help="of the machine (default: %(default)s)")
    parser.add_argument("--torch", default="2.11.0", help="of the machine (default: %(default)s)")
    have = "packages that the machine has, as `pip list --format=freeze` prints them there: their wheels stay out, "
    have += "unless another version is needed"
    parser.add_argument("--have", metavar="FILE", type=Path, help=have)
    parser.add_argument("--megabytes", type=int, default=60, help="of a part at most (default: %(default)s)")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"{args.out} is not empty")
    if args.have and not args.have.is_file():
        sys.exit(f"--have {args.have}: there is no such file")
    listed = re.findall(r"^([\w.-]+)==(\S+)", args.have.read_text(), re.MULTILINE) if args.have else []
    there = {canonical(name): version for name, version in listed}
    with tempfile.TemporaryDirectory() as work:
        wheels = Path(work, "wheels")
        collect(Path(work), wheels, args.python, args.torch, there)
        checksums = "".join(f"{digest(path)}  {path.name}\n" for path in sorted(wheels.iterdir()))
        parts = split(sorted(wheels.iterdir()), args.megabytes * 10**6 - len(checksums))  # which every part has too
        for number, part in enumerate(parts, 1):
            folder = args.out / f"part{number}"
            folder.mkdir(parents=True)
            (folder / "wheels.sha256").write_text(checksums)
            for piece in part:
                piece.write(folder)
            show(folder)


def collect(work: Path, wheels: Path, python: str, torch: str, there: dict[str, str]) -> None:
    """Fill the folder with wheels, less those of packages that are there in a version that will do."""
    pip("wheel", "--no-deps", "-w", wheels, *WITHOUT_WHEEL)
    pip("wheel", "--no-deps", "-w", wheels, REPOSITORY)
    shutil.rmtree(REPOSITORY / "build", ignore_errors=True)
    (own,) = wheels.glob("nnunet_mamba_mis-*.whl")
    constraints = work / "constraints.txt"
    constraints.write_text(UNLIKE_THERE.sub("", (REPOSITORY / "constraints.txt").read_text()))
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64", "--platform=linux_x86_64"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms]
    target += ["--find-links", str(wheels)]
    report = work / "report.json"
    pip("install", "--dry-run", "--ignore-installed", "--target", work / "nowhere", "--report", report, *target,
        "-c", constraints, torch_alone(work, torch), own, *REQUIREMENTS)  # fmt: skip
    chosen = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    suitable = {"torch", *there} - unsuitable(chosen, python, there)
    pins = [f"{p['name']}=={p['version']}" for p in chosen if canonical(p["name"]) not in suitable]
    pip("download", "--no-deps", "-d", wheels, *target, *pins)


def unsuitable(chosen: list[dict], python: str, there: dict[str, str]) -> set[str]:
    """Names of packages that are there in a version that one of the chosen packages excludes."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    requirements = [Requirement(text) for package in chosen for text in package.get("requires_dist", [])]
    return {
        name
        for r in requirements
        if (name := canonical(r.name)) in there and (r.marker is None or r.marker.evaluate(environment))
        if not r.specifier.contains(there[name], prereleases=True)
    }


def torch_alone(work: Path, version: str) -> Path:
    """Write a wheel that says it is this torch, and needs nothing: the real one is there, with what it needs."""
    path = work / f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        folder = f"torch-{version}.dist-info"
        wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")
    return path


def pip(*arguments: object) -> None:
    """Run it, or exit with its status."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    command += ["--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


def canonical(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Piece(NamedTuple):
    """Bytes of a wheel, as a rule all of them."""

    path: Path
    start: int
    size: int
    name: str

    def write(self, folder: Path) -> None:
        """Copy them into a file of this name."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            (folder / self.name).write_bytes(file.read(self.size))


def split(paths: list[Path], limit: int) -> list[list[Piece]]:
    """Deal wheels to parts of so many bytes, largest first; larger ones than a part are cut, NAME.000, NAME.001, …"""
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
    """Its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def show(folder: Path) -> None:
    """Print its size and its largest files."""
    sizes = sorted(((path.stat().st_size, path.name) for path in folder.iterdir()), reverse=True)
    print(f"{folder}: {sum(size for size, _ in sizes) / 1e6:.1f} MB, {len(sizes)} files")
    for size, name in sizes:
        print(f"  {size / 1e6:6.1f}  {name}")


if __name__ == "__main__":
    main()
