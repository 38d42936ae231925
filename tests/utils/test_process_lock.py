"""Locks between real processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal

import pytest

from nnunet_mamba_mis.trainers.fold_lock import lock_fold
from nnunet_mamba_mis.utils.process_lock import LockedError, lock_file


def hold(path, ready, with_child: bool):
    lock = lock_file(path)
    child = os.fork() if with_child else None
    if child != 0:
        ready.send(child)
    signal.pause()
    lock.release()


@pytest.fixture
def holder(tmp_path):
    """Return a function that starts a process holding the lock; `with_child` adds a child, as a data loader does."""
    context, started, children = multiprocessing.get_context("fork"), [], []

    def start(with_child: bool = False):
        here, there = context.Pipe()
        process = context.Process(target=hold, args=(tmp_path / "lock", there, with_child))
        process.start()
        started.append(process)
        children.append(here.recv())
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
    for child in filter(None, children):
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "with a worker that outlives it"])
def test_lock_ends_with_its_holder_however_it_ends(holder, tmp_path, with_child):
    process = holder(with_child)
    with pytest.raises(LockedError):
        lock_file(tmp_path / "lock")
    process.kill()
    process.join()
    assert lock_file(tmp_path / "lock").is_locked


def test_process_can_lock_a_file_repeatedly(tmp_path):
    first, second = (lock_file(tmp_path / "lock") for _ in range(2))
    assert first.is_locked and second.is_locked


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys, number):
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert lock_fold(tmp_path) is None
    assert "WARNING" in capsys.readouterr().out
    assert lock_fold(tmp_path) is None  # nothing is left that would block the next attempt
