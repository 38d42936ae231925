"""Threads of the native code where torch's OpenMP runtime is not found."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from nnunet_mamba_mis.architectures import MambaMIS
from nnunet_mamba_mis.ops import native_library as native
from support.scans import needs_native, run_program

pytestmark = [
    needs_native,
    pytest.mark.feature("Processes", "native code with threads of its own: values, fork, exit, idle time"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="hides the runtime that torch has on Linux"),
]
SIZE = 64


@pytest.fixture
def network(monkeypatch) -> Iterator[MambaMIS]:
    """Return a network that computes on three threads of our own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.manual_seed(0)
    monkeypatch.setattr(native, "_openmp_parallel", lambda: None)
    yield MambaMIS(3, 2, (SIZE, SIZE), variant="S").double()
    torch.set_num_threads(threads)


def outputs_and_gradients(network: MambaMIS, image: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    y = network(image)
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in network.parameters())]


def own_threads() -> int:
    """Return the number of threads of this process."""
    return len(os.listdir("/proc/self/task"))


def test_own_threads_compute_the_same_bits(monkeypatch, network):
    image = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    actual = outputs_and_gradients(network, image)
    monkeypatch.undo()
    shared = MambaMIS(3, 2, (SIZE, SIZE), variant="S").double()
    shared.load_state_dict(network.state_dict())
    for a, b in zip(actual, outputs_and_gradients(shared, image), strict=True):
        assert torch.equal(a, b)


def test_threads_are_kept_between_operations(network):
    image = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        network(image)
        before = own_threads()
        for _ in range(5):
            network(image)
    assert own_threads() == before


def test_waiting_threads_take_no_processor_time(network):
    with torch.no_grad():
        network(torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64))
    torch.set_num_threads(1)
    time.sleep(0.1)  # torch's own threads spin before they sleep
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_networks_in_several_python_threads_share_the_pool(network):
    image = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = network(image)
    results = []

    def compute() -> None:
        with torch.no_grad():
            results.extend(torch.equal(network(image), expected) for _ in range(10))

    workers = [threading.Thread(target=compute) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 40


def test_forked_processes_and_the_end_of_a_process_do_not_hang():
    assert run_program("fork_with_own_threads.py", timeout=120).splitlines() == [
        "2 threads started",
        "child: equal, 2 threads started",
        "parent: equal, the child's status 0",
    ]
