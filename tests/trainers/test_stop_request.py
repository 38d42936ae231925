"""Signals that stop training."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nnunet_mamba_mis.trainers.stop_request import StopRequest


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_ctrl_c_twice_ends_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.feature("Processes", "SIGTERM to `-num_gpus 2` leaves a checkpoint and no process")
def test_second_ctrl_c_is_ignored_in_one_of_several_processes():
    """When the command that started the process is killed, torch makes the kernel send one or more such signals."""
    with StopRequest(spawned=True) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    assert request.signal == signal.SIGINT


@pytest.mark.feature("Resuming", "Ctrl-C once, twice, or while a checkpoint is written; nohup")
def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as with nohup, or in a shell's background job
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
        assert request.signal == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_a_thread_handles_no_signals():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(StopRequest().__enter__).result()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_processes_forked_in_training_end_on_sigterm():
    ready, tell = os.pipe()
    with StopRequest() as request:
        child = os.fork()
        if child == 0:
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert request.signal == 0
