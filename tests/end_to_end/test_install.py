"""Installation alone lets nnU-Net find the trainers: from a wheel, from an editable install, beside other folders."""

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
    """All that is installed here except this package, as links, for environments that must not see this one."""
    folder = tmp_path_factory.mktemp("dependencies")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "nnunet_mamba_mis" not in entry.name and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """A copy of what the package is built from."""
    folder = tmp_path_factory.mktemp("source") / "nnunet-mamba-mis"
    folder.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("nnunet_mamba_mis", "csrc"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def make_environment(folder: Path, dependencies: Path) -> Path:
    """A fresh virtual environment that sees the dependencies; returns its python."""
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
    """Module and name of what nnU-Net finds, whether it is what our package has, and where that lies."""
    command = [python, PROGRAMS / "find_trainers.py", *names]
    done = subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def users_folder(tmp_path) -> Path:
    """A user's own folder of trainers."""
    shutil.copy(PROGRAMS / "users_trainers.py", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def quickly(tmp_path_factory) -> dict[str, str]:
    """A compiler that does not optimise, for builds of which the speed does not matter."""
    script = tmp_path_factory.mktemp("compiler") / "c++"
    script.write_text('#!/bin/sh\nexec c++ "$@" -O0\n')
    script.chmod(0o755)
    return {"CC": str(script), "CXX": str(script)}


@pytest.fixture(scope="session")
def without_compiler(tmp_path_factory, source) -> Path:
    """A wheel that was built where there is none."""
    return build_wheel(source, tmp_path_factory.mktemp("without"), CC="/nonexistent", CXX="/nonexistent")


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    """Build in a copy of the source, so that nothing of another build is found there."""
    copy = shutil.copytree(source, folder / "wheel-source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, copy], check=True, env=clean_environment(**variables))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session", params=["wheel", "editable"])
def installed(request, tmp_path_factory, dependencies, source, quickly) -> tuple[Path, Path]:
    """A fresh environment with the package installed, and the folder that the package must be imported from."""
    folder = tmp_path_factory.mktemp(request.param)
    python = make_environment(folder / "env", dependencies)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    if request.param == "editable":
        editable = shutil.copytree(source, folder / "source")
        subprocess.run([*command, "--editable", editable], check=True, env=clean_environment(**quickly))
        return python, editable
    subprocess.run([*command, build_wheel(source, folder, **quickly)], check=True, env=clean_environment())
    return python, folder / "env"


def test_trainers_found_are_the_imported_classes_and_other_folders_of_the_user_stay(installed, users_folder):
    python, origin = installed
    names = [OURS, OURS, f"{OURS}_L", "TrainerOfTheUser"]
    *ours, users = look_up(python, *names, nnUNet_extTrainer=str(users_folder))
    for name, (module, found, same, file) in zip(names, ours, strict=False):
        assert module.startswith("nnunet_mamba_mis.trainers") and found == name and same
        assert Path(file).is_relative_to(origin)
    assert users[:2] == ["users_trainers", "TrainerOfTheUser"]


def test_variable_holds_our_folder_once_also_in_child_processes(installed):
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
    """nnU-Net imports the modules of every folder in the variable; ours must not break its look-up there."""
    python = make_environment(tmp_path / "env", dependencies)
    folder = REPOSITORY / "nnunet_mamba_mis" / "nnunet_ext_trainers"
    (found,) = look_up(python, "TrainerOfTheUser", nnUNet_extTrainer=f"{folder}{os.pathsep}{users_folder}")
    assert found == ["users_trainers", "TrainerOfTheUser", False, ""]


def test_wheel_serves_every_python_and_needs_no_compiler(without_compiler, dependencies, tmp_path):
    """Without a compiler installation succeeds, and the doctor says which scan is used and how to get the other."""
    assert "-py3-none-" in without_compiler.name
    python = make_environment(tmp_path / "env", dependencies)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, without_compiler], check=True, env=clean_environment())
    done = doctor(python, **dict.fromkeys(FOLDERS, str(tmp_path)))
    assert done.returncode == 0, done.stdout
    assert "cpp: it was not built" in done.stdout and "apt install g++" in done.stdout
    assert "torch: works" in done.stdout


def doctor(python: Path, **variables: str) -> subprocess.CompletedProcess:
    command = [python, "-m", "nnunet_mamba_mis.cli", "doctor"]
    return subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True, cwd="/")


def test_doctor_finds_no_problem_where_there_is_none(installed, tmp_path):
    done = doctor(installed[0], **dict.fromkeys(FOLDERS, str(tmp_path)))
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout
    assert "torch: works" in done.stdout and "mamba_ssm: " in done.stdout


def test_doctor_sees_a_python_that_does_not_read_pth_files(without_compiler, dependencies, tmp_path):
    """With `pip install --target` the package is there but its .pth file is not read; folders are wrong besides."""
    target, absent = tmp_path / "target", tmp_path / "absent"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target]
    subprocess.run([*command, without_compiler], check=True, env=clean_environment())
    python = make_environment(tmp_path / "env", dependencies)
    done = doctor(python, PYTHONPATH=str(target), nnUNet_raw=str(tmp_path), nnUNet_results=str(absent))
    assert done.returncode == 1
    assert done.stdout.count("WRONG") == 3
    assert f"export nnUNet_extTrainer={target}/nnunet_mamba_mis/nnunet_ext_trainers" in done.stdout
    assert "export nnUNet_preprocessed=" in done.stdout and f"mkdir -p '{absent}'" in done.stdout
    assert sys.version.split()[0] in done.stdout
