"""Check the wheels that scripts/build_wheels.py built, and run those that this machine can run: `make wheels-check`.

Tests that need another machine, or an emulator that is not installed, are skipped with the reason.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from functools import cache
from pathlib import Path

import pytest

from support.native_vectors import write_cases
from support.paths import PROGRAMS, REPOSITORY

lief = pytest.importorskip("lief", reason="pip install '.[wheels]'")
BUILD = runpy.run_path(str(REPOSITORY / "scripts" / "build_wheels.py"))
PLATFORMS = BUILD["PLATFORMS"]
SETS = [(name, instruction_set) for name in PLATFORMS for instruction_set in PLATFORMS[name].flags]

# allowed dependencies: parts of the C library or, on Windows, of the system
C_LIBRARY = {
    "manylinux2014_x86_64": {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"},
    "manylinux2014_aarch64": {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-aarch64.so.1"},
    "musllinux_1_2_x86_64": {"libc.musl-x86_64.so.1"},
    "macosx_11_0_arm64": {"/usr/lib/libSystem.B.dylib"},
    "macosx_10_15_x86_64": {"/usr/lib/libSystem.B.dylib"},
    "win_amd64": {"KERNEL32.dll", "ntdll.dll"},  # and the Universal C Runtime, api-ms-win-crt-*.dll
}
# the newest version of glibc's symbols that the platform's tag allows (ELF)
NEWEST_GLIBC = (2, 17)


@pytest.fixture(scope="session")
def dist(request) -> Path:
    folder = request.config.getoption("--wheels")
    if folder is None:
        pytest.skip("needs wheels: make wheels, then --wheels dist")
    return request.config.invocation_params.dir / folder


@pytest.fixture(scope="session")
def wheel_for(dist):
    def find(name: str) -> Path:
        (wheel,) = dist.glob(f"*-py3-none-{name}.whl")
        return wheel

    return find


@pytest.fixture(scope="session")
def library(wheel_for, tmp_path_factory):
    """Return a function that returns the path of an unpacked library."""

    @cache
    def unpack(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(wheel_for(name)) as archive:
            archive.extractall(folder)
        return folder / "nnunet_mamba_mis" / "ops"

    return lambda name, instruction_set: unpack(name) / f"_native_{instruction_set}{PLATFORMS[name].suffix}"


def output_of(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def tool(name: str) -> Path:
    return Path(sysconfig.get_path("scripts")) / name


every_platform = pytest.mark.parametrize("name", PLATFORMS)
every_library = pytest.mark.parametrize(("name", "instruction_set"), SETS, ids=map("-".join, SETS))


@every_platform
def test_wheel_has_all_instruction_sets_of_its_platform_and_is_small(name, wheel_for):
    wheel = wheel_for(name)
    assert wheel.stat().st_size <= 6e6
    with zipfile.ZipFile(wheel) as archive:
        libraries = {entry for entry in archive.namelist() if "/_native_" in entry}
    suffix = PLATFORMS[name].suffix
    assert libraries == {f"nnunet_mamba_mis/ops/_native_{known}{suffix}" for known in PLATFORMS[name].flags}


@every_platform
def test_record_has_the_hash_of_every_file(name, wheel_for):
    with zipfile.ZipFile(wheel_for(name)) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    (record,) = (entry for entry in files if entry.endswith(".dist-info/RECORD"))
    listed = {}
    for line in files.pop(record).decode().splitlines():
        path, digest, size = line.rsplit(",", 2)
        listed[path] = (digest, size)
    assert listed.pop(record) == ("", "")
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert listed.pop(path) == (f"sha256={digest}", str(len(content)))
    assert not listed


def test_twine_finds_no_fault(dist):
    output_of(tool("twine"), "check", "--strict", *sorted(dist.glob("*.whl")), *dist.glob("*.tar.gz"))


@every_platform
def test_check_wheel_contents_finds_no_fault(name, wheel_for):
    output_of(tool("check-wheel-contents"), wheel_for(name))


@pytest.mark.parametrize("name", [name for name in PLATFORMS if "linux" in name])
def test_auditwheel_agrees_with_the_tag(name, wheel_for):
    shown = output_of(tool("auditwheel"), "show", wheel_for(name))
    assert f'"{name.replace("manylinux2014", "manylinux_2_17")}"' in shown


@every_library
def test_library_needs_the_c_library_alone(name, instruction_set, library):
    path = library(name, instruction_set)
    parsed = lief.parse(str(path))  # must outlive its entries
    needed = {getattr(entry, "name", entry) for entry in parsed.libraries}
    needed -= {path.name}  # libraries for macOS list their own name too
    if PLATFORMS[name].suffix == ".dll":
        needed = {entry for entry in needed if not entry.startswith("api-ms-win-crt-")}
    assert needed <= C_LIBRARY[name]


@every_library
def test_library_is_stripped_and_names_no_folder_of_its_builder(name, instruction_set, library):
    path = library(name, instruction_set)
    parsed = lief.parse(str(path))
    sections = {section.name for section in parsed.sections}
    assert not {section for section in sections if section == ".symtab" or "debug" in section}
    content = path.read_bytes()
    for folder in (str(REPOSITORY), "/tmp/", "/home/"):
        assert folder.encode() not in content


@every_library
def test_library_exports_the_same_functions_everywhere(name, instruction_set, library):
    assert exported(library(name, instruction_set)) == exported(library("manylinux2014_x86_64", "baseline"))


def exported(path: Path) -> set[str]:
    parsed = lief.parse(str(path))
    names = {function.name.lstrip("_") for function in parsed.exported_functions}
    return {name for name in names if name.startswith("mamba_mis_")}


@pytest.mark.parametrize(
    ("name", "instruction_set"), [pair for pair in SETS if "manylinux" in pair[0]], ids=lambda value: str(value)
)
def test_library_asks_for_no_newer_glibc(name, instruction_set, library):
    parsed = lief.parse(str(library(name, instruction_set)))
    versions = [
        auxiliary.name.removeprefix("GLIBC_")
        for requirement in parsed.symbols_version_requirement
        for auxiliary in requirement.get_auxiliary_symbols()
    ]
    assert versions and max(tuple(map(int, version.split("."))) for version in versions) <= NEWEST_GLIBC


@pytest.mark.parametrize(
    ("name", "instruction_set"), [pair for pair in SETS if "macosx" in pair[0]], ids=lambda value: str(value)
)
def test_library_for_macos_fits_its_tag(name, instruction_set, library):
    """The library cannot run here, so the test reads its processor, minimum macOS version and signature."""
    parsed = lief.MachO.parse(str(library(name, instruction_set))).at(0)
    _, major, minor, processor = name.split("_", 3)
    expected = lief.MachO.Header.CPU_TYPE.ARM64 if processor == "arm64" else lief.MachO.Header.CPU_TYPE.X86_64
    assert parsed.header.cpu_type == expected
    commands = [command for command in (parsed.build_version, parsed.version_min) if command is not None]
    lowest = [getattr(command, "minos", None) or command.version for command in commands]
    assert [tuple(version[:2]) for version in lowest] == [(int(major), int(minor))]
    assert parsed.has_code_signature or processor != "arm64"  # macOS on Arm runs only signed code


@pytest.fixture(scope="session")
def vectors(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.bin"
    write_cases(path)
    return path


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Return a function that compiles the test program for a platform with zig."""

    @cache
    def build(name: str) -> Path:
        windows, glibc = name.startswith("win"), name.startswith("manylinux")
        path = tmp_path_factory.mktemp("runner") / ("run_vectors.exe" if windows else "run_vectors")
        command = BUILD["compiler"](PLATFORMS[name])
        libraries = ["-ldl"] if glibc else []
        # the link flags of the libraries: with other flags, zig would recompile the standard library
        flags = ["-std=c++17", "-O3", "-fPIC", "-s"]
        flags += ["-dynamic"] if name.startswith("musl") else []  # a static program cannot load a library
        output_of(*command, *flags, PROGRAMS / "run_vectors.cpp", "-o", path, *libraries)
        return path

    return build


def launcher(name: str) -> list[str]:
    """Return the command that runs a platform's programs on this machine; skip the test if there is none."""
    here = f"{platform.system().lower()}-{platform.machine().lower()}"
    if "macosx" in name:
        system = {"macosx_11_0_arm64": "darwin-arm64", "macosx_10_15_x86_64": "darwin-x86_64"}[name]
        if here != system:
            pytest.skip("runs only on a Mac")
        return []
    if name == "win_amd64":
        if sys.platform == "win32":
            return []
        wine = shutil.which("wine64") or shutil.which("wine")
        if wine is None:
            pytest.skip("needs Wine: apt install wine64")
        return [wine]
    if sys.platform != "linux":
        pytest.skip("runs only on Linux")
    if name == "manylinux2014_aarch64":
        if here == "linux-aarch64":
            return []
        emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        if emulator is None or not Path("/usr/aarch64-linux-gnu/lib").is_dir():
            pytest.skip("needs an emulator and a C library: apt install qemu-user-static libc6-arm64-cross")
        return [emulator, "-L", "/usr/aarch64-linux-gnu"]
    if here != "linux-x86_64":
        pytest.skip("runs only on x86-64")
    if "musl" in name and not Path("/lib/ld-musl-x86_64.so.1").exists():
        pytest.skip("needs musl: apt install musl")
    return []


def machine_has(instruction_set: str) -> bool:
    flags = {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw"}}.get(instruction_set)
    if flags is None:
        return True
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and flags <= set(cpuinfo.read_text().split())


@every_library
def test_every_kernel_agrees_with_the_reference(name, instruction_set, library, runner, vectors, tmp_path):
    if not machine_has(instruction_set):
        pytest.skip(f"this machine has no {instruction_set}")
    command = [*launcher(name), runner(name), library(name, instruction_set), vectors]
    output = output_of(*command, env={**os.environ, "WINEDEBUG": "-all", "WINEPREFIX": str(wine_folder(tmp_path))})
    assert output.splitlines()[-1].endswith(" cases, 0 wrong"), output


def wine_folder(tmp_path: Path) -> Path:
    """Return the Wine prefix, which is slow to create, so all tests of a session share it."""
    return tmp_path.parent / "wine"


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="reads /proc/cpuinfo")
@pytest.mark.parametrize("instruction_set", ["avx2", "avx512"])
def test_baseline_library_knows_what_the_machine_has(instruction_set, library):
    """The library queries the processor itself; the runtime library that zig links reports no instruction sets.

    The package uses the result to choose which library to load.
    """
    loaded = ctypes.CDLL(str(library("manylinux2014_x86_64", "baseline")))
    assert bool(getattr(loaded, f"mamba_mis_machine_has_{instruction_set}")()) == machine_has(instruction_set)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "interpreter" in metafunc.fixturenames:
        given = metafunc.config.getoption("--pythons") or [sys.executable]
        # not resolved: the Python of a virtual environment must stay a link
        metafunc.parametrize("interpreter", [str(metafunc.config.invocation_params.dir / python) for python in given])


@pytest.fixture
def environment(interpreter, wheel_for, tmp_path) -> Path:
    """Return the Python of a fresh environment with the wheel, and with the given interpreter's other packages."""
    subprocess.run([interpreter, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    code = "import json, sys; print(json.dumps([p for p in sys.path if p.endswith('site-packages')]))"
    folders = json.loads(output_of(interpreter, "-c", code, cwd="/"))
    packages = tmp_path / "packages"
    packages.mkdir()
    for folder in folders:
        for entry in Path(folder).iterdir():
            ours = "mamba_mis" in entry.name
            if not ours and entry.suffix != ".pth" and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    site = Path(output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "packages.pth").write_text(f"{packages}\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    output_of(*command, wheel_for("manylinux2014_x86_64"))
    return python


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="installs the wheel for Linux on x86-64"
)
def test_installed_wheel_finds_the_native_code_first(environment, tmp_path, capsys):
    """Run the scan in each instruction set of the machine, with no compiler on the path, without importing nnU-Net."""
    command = [environment, PROGRAMS / "scan_speed.py"]
    clean = {"PATH": str(tmp_path / "nothing"), "OMP_WAIT_POLICY": "passive"}
    best = json.loads(output_of(*command, cwd="/", env=clean))
    names = [known for known in ("avx512", "avx2", "baseline") if machine_has(known)]
    assert best["instruction_set"] == names[0]
    for name in names:
        found = json.loads(output_of(*command, cwd="/", env={**clean, "MAMBA_MIS_INSTRUCTION_SET": name}))
        with capsys.disabled():
            print(f"\n{found}")
        assert (found["backend"], found["instruction_set"], found["nnunetv2"]) == ("cpp", name, False)
        assert found["error"] < 1e-4


@every_platform
def test_second_build_has_the_same_bytes(name, wheel_for, dist, tmp_path):
    """The second build uses a copy of the source in another folder."""
    copy = tmp_path / "elsewhere"
    kept = shutil.ignore_patterns(
        ".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "site", "results", "tests"
    )
    shutil.copytree(REPOSITORY, copy, ignore=kept)
    shutil.copytree(REPOSITORY / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or output_of("git", "log", "-1", "--format=%ct", cwd=REPOSITORY).strip()
    command = [sys.executable, copy / "scripts" / "build_wheels.py", tmp_path / "dist", "--platforms", name]
    output_of(*command, env={**os.environ, "SOURCE_DATE_EPOCH": epoch})
    for built in (tmp_path / "dist").iterdir():
        assert built.read_bytes() == (dist / built.name).read_bytes(), built.name
