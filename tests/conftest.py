"""Settings and fixtures that all tests share."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
from pathlib import Path

# set before torch is imported: otherwise, waiting threads of two workers would spin on the same cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# child processes must print each line at once: tests wait for lines and check their order
os.environ.setdefault("PYTHONUNBUFFERED", "1")
os.environ["MATPLOTLIBRC"] = str(Path(__file__).parent / "support" / "matplotlibrc")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from support.paths import REPOSITORY

# Triton decides on import whether to interpret kernels, the only way to run them without a GPU
if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/wheels, whose tests are skipped without --wheels."""
    group = parser.getgroup("wheels")
    group.addoption("--wheels", metavar="DIR", help="folder with the wheels that scripts/build_wheels.py has built")
    group.addoption("--pythons", metavar="PYTHON", nargs="+", help="interpreters with torch to install the wheel for")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow tests first, so that no worker runs one at the end while the others are idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images and data for the parity tests; tests that need it are skipped if it does not exist."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Restore Ctrl-C: a shell's background jobs ignore it, and so would the child processes that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory) -> None:
    """Leave the source tree, which `python -c` would search first: child processes must find the installed package."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Set torch's number of threads, and restore it afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty nnUNet_raw, set for this process and its child processes."""
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def listed_in_one_process(monkeypatch):
    """Keep nnU-Net from forking twelve processes to list a folder's images, which takes longer than planning."""
    utilities = importlib.import_module("nnunetv2.utilities.utils")
    monkeypatch.setattr(utilities.create_lists_from_splitted_dataset_folder, "__defaults__", (None, 1))


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory):
    """nnU-Net's folders and commands, for tests that share datasets and trained models."""
    from support.nnunet_workplace import Workplace

    return Workplace(tmp_path_factory.mktemp("nnU-Net"))
