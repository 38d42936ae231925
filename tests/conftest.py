"""Shared by all tests: where real data lies, if it does."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
from pathlib import Path

# before torch is imported: threads of two workers would spin in wait for each other on the same cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# processes that tests start print each line when it is written: tests wait for lines and read their order
os.environ.setdefault("PYTHONUNBUFFERED", "1")
os.environ["MATPLOTLIBRC"] = str(Path(__file__).parent / "support" / "matplotlibrc")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from support.paths import REPOSITORY

# Triton decides when it is first imported whether it interprets, which is all it can do without a GPU
if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/wheels, which are skipped without them."""
    group = parser.getgroup("wheels")
    group.addoption("--wheels", metavar="DIR", help="folder with the wheels that scripts/build_wheels.py has built")
    group.addoption("--pythons", metavar="PYTHON", nargs="+", help="interpreters with torch to install the wheel for")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put modules with slow tests first, so that no worker begins with one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real images and parity numbers, which the project builds and passes without."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell's background job ignores Ctrl-C, and so would the child processes that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory) -> None:
    """Child processes must find the installed package, not the source tree, which `python -c` would put first."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Set the number of threads for torch, and put it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty nnUNet_raw, set for this process and those it starts."""
    folder = tmp_path / "nnUNet_raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def listed_in_one_process(monkeypatch):
    """To list the images of a folder, nnU-Net forks twelve processes, which takes longer than to plan."""
    utilities = importlib.import_module("nnunetv2.utilities.utils")
    monkeypatch.setattr(utilities.create_lists_from_splitted_dataset_folder, "__defaults__", (None, 1))


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory):
    """nnU-Net's folders and commands, for tests that share datasets and trainings."""
    from support.nnunet_workplace import Workplace

    return Workplace(tmp_path_factory.mktemp("nnU-Net"))
