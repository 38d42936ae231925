"""Native code in a C++ program, without Python. tests/wheels runs the same program on other systems."""

from __future__ import annotations

import subprocess

import pytest
import torch

from nnunet_mamba_mis.ops import native_library as native
from support.native_vectors import make_cases, write_cases
from support.paths import PROGRAMS
from support.scans import INSTRUCTION_SETS, needs_native

pytestmark = needs_native


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    path = tmp_path_factory.mktemp("runner") / "run_vectors"
    subprocess.run(["c++", "-std=c++17", PROGRAMS / "run_vectors.cpp", "-o", path, "-ldl"], check=True)
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    path = tmp_path_factory.mktemp("vectors") / "vectors.bin"
    write_cases(path)
    return path


def run(runner, vectors, instruction_set="baseline"):
    command = [runner, native._library_path(instruction_set), vectors]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_every_kernel_agrees_with_the_reference(instruction_set, runner, vectors):
    done = run(runner, vectors, instruction_set)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " right, off by at most " in done.stdout


def test_other_expectation_is_an_error(runner, tmp_path):
    """The program detects a kernel that is off by a thousandth."""
    case = next(iter(make_cases(torch.float32, 1)))
    name, place, tensor = case.expectations[0]
    case.expectations[0] = (name, place, tensor * 1.001)
    path = tmp_path / "vectors.bin"
    path.write_bytes((1).to_bytes(8, "little") + bytes(case))
    done = run(runner, path)
    assert done.returncode == 1 and f"{name} is off by" in done.stdout
