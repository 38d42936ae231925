"""nnU-Net finds the trainers of a wheel or editable install without setup, even beside other folders of trainers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from support.paths import PROGRAMS, REPOSITORY

OURS = "nnUNetTrainerMambaMIS"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory) -> Path:
    """A folder with links to all installed packages except this one, for new environments."""
    folder = tmp_path_factory.mktemp("dependencies")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "nnunet_mamba_mis" not in entry.name and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A copy of the files that the package is built from."""
    folder = tmp_path_factory.mktemp("source") / "nnunet-mamba-mis"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("nnunet_mamba_mis", "csrc"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def make_environment(folder: Path, dependencies: Path) -> Path:
    """Create a virtual environment with the dependencies, and return its Python executable."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (Path(site) / "dependencies.pth").write_text(f"{dependencies}\n")
    return python


def clean_environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "PYTHON"))}
    return kept | {"PYTHONWARNINGS": "ignore"} | variables


def look_up(python: Path, *names: str, **variables: str) -> list[list]:
    """Return, for each name, the found trainer's module and name, whether it is ours, and the package's `__file__`."""
    command = [python, PROGRAMS / "find_trainers.py", *names]
    done = subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def users_folder(tmp_path) -> Path:
    """A user's folder of trainers."""
    shutil.copy(PROGRAMS / "users_trainers.py", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def fast_compiler(tmp_path_factory) -> dict[str, str]:
    """Environment variables that select a compiler without optimization, for builds whose speed does not matter."""
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    script.chmod(0o755)
    return {"CC": str(script), "CXX": str(script)}


@pytest.fixture(scope="session")
def wheel_without_compiler(tmp_path_factory, source) -> Path:
    """A wheel that was built without a compiler."""
    return build_wheel(source, tmp_path_factory.mktemp("without"), CC="/nonexistent", CXX="/nonexistent")


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    """Build a wheel in a copy of the source, so that it uses no files of another build."""
    copy = shutil.copytree(source, folder / "wheel-source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, copy], check=True, env=clean_environment(**variables))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session", params=["wheel", "editable"])
def installed(request, tmp_path_factory, dependencies, source, fast_compiler) -> tuple[Path, Path]:
    """The Python of a fresh environment with the package, and the folder that it must import the package from."""
    folder = tmp_path_factory.mktemp(request.param)
    python = make_environment(folder / "env", dependencies)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    if request.param == "editable":
        editable = shutil.copytree(source, folder / "source")
        subprocess.run([*command, "--editable", editable], check=True, env=clean_environment(**fast_compiler))
        return python, editable
    subprocess.run([*command, build_wheel(source, folder, **fast_compiler)], check=True, env=clean_environment())
    return python, folder / "env"


def test_nnunet_finds_the_packages_classes_and_the_users_folders(installed, users_folder):
    python, origin = installed
    names = [OURS, OURS, f"{OURS}_L", "TrainerOfTheUser"]
    *ours, users = look_up(python, *names, nnUNet_extTrainer=str(users_folder))
    for name, (module, found, same, file) in zip(names, ours, strict=False):
        assert module.startswith("nnunet_mamba_mis.trainers") and found == name and same
        assert Path(file).is_relative_to(origin)
    assert users[:2] == ["users_trainers", "TrainerOfTheUser"]


def test_variable_holds_the_packages_folder_once_even_in_child_processes(installed):
    python, _ = installed
    code = "import os; print(os.environ['nnUNet_extTrainer'])"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    for variables, others in ({}, []), ({"nnUNet_extTrainer": "/a:/b"}, ["/a", "/b"]):
        done = subprocess.run(
            [python, "-c", nested], env=clean_environment(**variables), capture_output=True, text=True, check=True
        )
        entries = done.stdout.strip().split(os.pathsep)
        assert entries[:-1] == others and entries[-1].endswith("nnunet_ext_trainers")


def test_environment_without_the_package_may_inherit_the_variable(dependencies, users_folder, tmp_path):
    """nnU-Net imports the modules of every folder in the variable, so our module must not end the look-up."""
    python = make_environment(tmp_path / "env", dependencies)
    folder = REPOSITORY / "nnunet_mamba_mis" / "nnunet_ext_trainers"
    (found,) = look_up(python, "TrainerOfTheUser", nnUNet_extTrainer=f"{folder}{os.pathsep}{users_folder}")
    assert found == ["users_trainers", "TrainerOfTheUser", False, ""]


def test_wheel_serves_every_python_and_needs_no_compiler(wheel_without_compiler, dependencies, tmp_path):
    """Without a compiler, installation succeeds, and the doctor reports the scan in use and the way to native code."""
    assert "-py3-none-" in wheel_without_compiler.name
    python = make_environment(tmp_path / "env", dependencies)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, wheel_without_compiler], check=True, env=clean_environment())
    done = doctor(python, **dict.fromkeys(FOLDERS, str(tmp_path)))
    assert done.returncode == 0, done.stdout
    assert "cpp: it was not built" in done.stdout and "apt install g++" in done.stdout
    assert "torch: works" in done.stdout


def doctor(python: Path, **variables: str) -> subprocess.CompletedProcess:
    command = [python, "-m", "nnunet_mamba_mis.cli", "doctor"]
    return subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True, cwd="/")


def test_doctor_reports_no_problem_after_a_correct_installation(installed, tmp_path):
    done = doctor(installed[0], **dict.fromkeys(FOLDERS, str(tmp_path)))
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    assert "torch: works" in done.stdout and "mamba_ssm: " in done.stdout


def test_doctor_reports_a_python_that_ignores_pth_files(wheel_without_compiler, dependencies, tmp_path):
    """After `pip install --target`, Python ignores the package's .pth file. Two of nnU-Net's folders are wrong too."""
    target, absent = tmp_path / "target", tmp_path / "absent"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target]
    subprocess.run([*command, wheel_without_compiler], check=True, env=clean_environment())
    python = make_environment(tmp_path / "env", dependencies)
    done = doctor(python, PYTHONPATH=str(target), nnUNet_raw=str(tmp_path), nnUNet_results=str(absent))
    assert done.returncode == 1
    assert done.stdout.count("WRONG") == 3
    assert f"export nnUNet_extTrainer={target}/nnunet_mamba_mis/nnunet_ext_trainers" in done.stdout
    assert "export nnUNet_preprocessed=" in done.stdout and f"mkdir -p '{absent}'" in done.stdout
    assert sys.version.split()[0] in done.stdout
