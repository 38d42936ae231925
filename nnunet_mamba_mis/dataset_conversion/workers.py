"""Do the same to many cases in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from nnunet_mamba_mis.utils.errors import UserError

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

# cases handed to a process at once: saves waiting for the next, and is few enough to keep the processes evenly busy
_CHUNK = 4


class Workers:
    """Processes that share the work; with one, it is done here.

    Args:
        pool: The processes, or None for this one.
    """

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def map(self, function: Callable[[_Job], _Result], jobs: Sequence[_Job], what: str) -> Iterator[_Result]:
        """Yield the result of each job in order, as it comes, and show progress.

        Args:
            function: A function of a module.
            jobs: What to call it with.
            what: Name of the work, for the progress bar.
        """
        results: Iterator[_Result]
        if self._pool is None:
            results = map(function, jobs)
        else:
            with _interrupts_blocked():
                results = self._pool.map(function, jobs, chunksize=_CHUNK)
        yield from tqdm(results, total=len(jobs), desc=what, unit="case", disable=None, leave=False)


@contextmanager
def workers(processes: int) -> Iterator[Workers]:
    """Give so many processes, which end with the block and with this process."""
    if processes == 1:
        yield Workers(None)
        return
    # spawn: a forked child can inherit a lock that a thread of its parent holds
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _initialize_worker)
    try:
        yield Workers(pool)
    except BrokenProcessPool:
        raise UserError("a worker process was killed, perhaps out of memory: try a smaller -np") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never get it, so that only this one answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _initialize_worker() -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # else the workers of a parent that was killed would wait for work for ever
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
