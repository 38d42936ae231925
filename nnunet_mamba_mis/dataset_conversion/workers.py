"""Apply a function to many cases in several processes."""

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

# cases per chunk: enough that a process rarely waits for its next case, and few enough to balance the processes
_CHUNK = 4


# the problem of a file that kills the process that decodes it
KILLED = "kills the process that decodes it: its decoder crashes or runs out of memory"


class Workers:
    """A pool of processes; with one process, jobs run in the calling process.

    Args:
        processes: Number of processes.
        isolated: Whether jobs run in other processes even if `processes` is 1.
    """

    def __init__(self, processes: int, isolated: bool = False) -> None:
        self._processes = processes
        self._here = processes == 1 and not isolated
        # the processes start with the first job
        self._pool = _new_pool(processes)

    def map(
        self,
        function: Callable[[_Job], _Result],
        jobs: Sequence[_Job],
        what: str | None,
        killed: Callable[[_Job], _Result],
    ) -> Iterator[_Result]:
        """Yield the results of the jobs in order, as they become available, and show progress.

        Args:
            function: A module-level function; called twice with some jobs if a process is killed.
            jobs: The function's arguments.
            what: Title of the progress bar; None for no bar.
            killed: Function that returns the result to yield for a job that killed its process.

        Raises:
            UserError: Processes cannot be started.
        """
        results = map(function, jobs) if self._here else self._spread(function, jobs, killed)
        disable = None if what else True
        yield from tqdm(results, total=len(jobs), desc=what, unit="case", disable=disable, leave=False)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)

    def _spread(
        self, function: Callable[[_Job], _Result], jobs: Sequence[_Job], killed: Callable[[_Job], _Result]
    ) -> Iterator[_Result]:
        done = 0
        while done < len(jobs):
            try:
                with _interrupts_blocked():
                    results = self._pool.map(function, jobs[done:], chunksize=_CHUNK)
                for result in results:
                    yield result
                    done += 1
            except BrokenProcessPool:
                # one of the next jobs killed a process; running them one by one shows which
                suspects = jobs[done : done + 2 * self._processes * _CHUNK]
                yield from self._one_by_one(function, suspects, killed)
                done += len(suspects)
                self._replace_pool(self._processes)

    def _one_by_one(
        self, function: Callable[[_Job], _Result], jobs: Sequence[_Job], killed: Callable[[_Job], _Result]
    ) -> Iterator[_Result]:
        self._replace_pool(1)
        for job in jobs:
            try:
                yield self._pool.submit(function, job).result()
            except BrokenProcessPool:
                yield killed(job)
                self._replace_pool(1)

    def _replace_pool(self, processes: int) -> None:
        self.close()
        self._pool = _new_pool(processes)
        try:
            with _interrupts_blocked():
                started = self._pool.submit(os.getpid)
            started.result()
        except BrokenProcessPool:
            raise UserError(
                "worker processes are killed as soon as they start, perhaps because memory is full: try -np 1"
            ) from None


def _new_pool(processes: int) -> ProcessPoolExecutor:
    # spawn: a forked child can inherit a lock that a thread of its parent holds
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _initialize_worker)


@contextmanager
def workers(processes: int, isolated: bool = False) -> Iterator[Workers]:
    """Provide `Workers`, whose processes end with the block or with this process."""
    pool = Workers(processes, isolated)
    try:
        yield pool
    finally:
        pool.close()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C; processes started meanwhile inherit the block, so only this process handles Ctrl-C."""
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
    # otherwise the workers of a killed parent would wait for work forever
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
