"""Installation alone lets nnU-Net find the trainers: from a wheel, from an editable install, beside other folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from support.paths import REPOSITORY

LOOK_UP = """
import contextlib, io, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
with contextlib.redirect_stdout(io.StringIO()):
    found = [find(name) for name in sys.argv[1:]]
for trainer in found:
    print(trainer.__module__, trainer.__name__)
if all(trainer.__name__.startswith("nnUNetTrainerMambaMIS") for trainer in found):
    import nnunet_mamba_mis, nnunet_mamba_mis.trainers
    print(nnunet_mamba_mis.__file__)
    print([trainer is getattr(nnunet_mamba_mis.trainers, trainer.__name__) for trainer in found])
"""
OTHER_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class TrainerOfTheUser(nnUNetTrainer):
    pass
"""


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


def look_up(python: Path, *names: str, **variables: str) -> list[str]:
    done = subprocess.run(
        [python, "-c", LOOK_UP, *names], env=clean_environment(**variables), capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    """Build in a copy of the source, so that nothing of another build is found there."""
    copy = shutil.copytree(source, folder / "wheel-source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, copy], check=True, env=clean_environment(**variables))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session", params=["wheel", "editable"])
def installed(request, tmp_path_factory, dependencies, source) -> tuple[Path, Path]:
    """A fresh environment with the package installed, and the folder that the package must be imported from."""
    folder = tmp_path_factory.mktemp(request.param)
    python = make_environment(folder / "env", dependencies)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    if request.param == "editable":
        editable = shutil.copytree(source, folder / "source")
        subprocess.run([*command, "--editable", editable], check=True, env=clean_environment())
        return python, editable
    subprocess.run([*command, build_wheel(source, folder)], check=True, env=clean_environment())
    return python, folder / "env"


def test_trainer_found_twice_is_the_imported_class(installed):
    python, origin = installed
    name = "nnUNetTrainerMambaMIS"
    *found, file, same = look_up(python, name, name, "nnUNetTrainerMambaMIS_L")
    assert found[0] == found[1] == f"nnunet_mamba_mis.trainers.{name} {name}"
    assert Path(file).is_relative_to(origin)
    assert same == "[True, True, True]"


def test_other_folders_of_the_user_stay(installed, tmp_path):
    python, _ = installed
    (tmp_path / "other_trainers.py").write_text(OTHER_TRAINER)
    assert look_up(python, "TrainerOfTheUser", nnUNet_extTrainer=str(tmp_path)) == ["other_trainers TrainerOfTheUser"]
    name = "nnUNetTrainerMambaMIS_S"
    *found, _, same = look_up(python, name, name, nnUNet_extTrainer=str(tmp_path))
    assert found == [f"nnunet_mamba_mis.trainers.variants {name}"] * 2
    assert same == "[True, True]"


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


def test_environment_without_the_package_may_inherit_the_variable(dependencies, tmp_path):
    """nnU-Net imports the modules of every folder in the variable; ours must not break its look-up there."""
    python = make_environment(tmp_path / "env", dependencies)
    folder = REPOSITORY / "nnunet_mamba_mis" / "nnunet_ext_trainers"
    (tmp_path / "other_trainers.py").write_text(OTHER_TRAINER)
    found = look_up(python, "TrainerOfTheUser", nnUNet_extTrainer=f"{folder}{os.pathsep}{tmp_path}")
    assert found == ["other_trainers TrainerOfTheUser"]


def test_wheel_serves_every_python_and_needs_no_compiler(source, dependencies, tmp_path):
    """Without a compiler installation succeeds, and the doctor says which scan is used and how to get the other."""
    wheel = build_wheel(source, tmp_path, CC="/nonexistent", CXX="/nonexistent")
    assert "-py3-none-" in wheel.name
    python = make_environment(tmp_path / "env", dependencies)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, wheel], check=True, env=clean_environment())
    done = doctor(python, **{n: str(tmp_path) for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")})
    assert done.returncode == 0, done.stdout
    assert "cpp: it was not built" in done.stdout and "apt install g++" in done.stdout
    assert "torch: works" in done.stdout


def doctor(python: Path, **variables: str) -> subprocess.CompletedProcess:
    command = [python, "-m", "nnunet_mamba_mis.cli", "doctor"]
    return subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True, cwd="/")


def test_doctor_is_content_where_all_is_well(installed, tmp_path):
    folders = {name: str(tmp_path) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    done = doctor(installed[0], **folders)
    assert done.returncode == 0, done.stdout
    assert "WRONG" not in done.stdout and "Ready to train" in done.stdout
    assert "torch: works" in done.stdout and "mamba_ssm: " in done.stdout


def test_doctor_names_what_is_wrong_and_the_way_out(installed, tmp_path):
    done = doctor(installed[0], nnUNet_raw=str(tmp_path), nnUNet_results=str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "nnUNet_preprocessed is not set" in done.stdout and "export nnUNet_preprocessed=" in done.stdout
    assert "absent is not a folder" in done.stdout and "mkdir -p" in done.stdout
    assert "2 problems" in done.stdout


def test_doctor_sees_a_python_that_does_not_read_pth_files(dependencies, tmp_path):
    """As with `pip install --target`, the package is there but its .pth file is not read."""
    python = make_environment(tmp_path / "env", dependencies)
    done = doctor(python, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 1
    assert f"export nnUNet_extTrainer={REPOSITORY}/nnunet_mamba_mis/nnunet_ext_trainers" in done.stdout
    assert sys.version.split()[0] in done.stdout
