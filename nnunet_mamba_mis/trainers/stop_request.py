"""Stop training on a signal."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """A context that records SIGTERM and Ctrl-C instead of obeying them.

    It obeys a second Ctrl-C, because a user is waiting, but not a second SIGTERM: clusters may send several at once. It
    leaves alone signals that are ignored (`nohup`) or that the program handles itself. Outside the main thread, where
    Python delivers no signals, it does nothing.

    Args:
        spawned: Whether this is one of several training processes. Such a process does not obey a second Ctrl-C:
            when the command that started it is killed, torch makes the kernel send SIGINT one or more times. The
            process may ignore SIGINT, as a shell's background job does, so the end of that command counts as SIGTERM.
    """

    def __init__(self, spawned: bool = False) -> None:
        self._first = 0
        self._spawned = spawned
        self._obeys_second = not spawned
        self._process = os.getpid()
        self._handlers: dict[int, signal.Handlers] = {}

    @property
    def signal(self) -> int:
        """Number of the first signal received, or 0."""
        if not self._first and self._spawned and _command_is_gone():
            return signal.SIGTERM
        return self._first

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Ignore even a second Ctrl-C within this context, which is for short work that must not be interrupted."""
        before, self._obeys_second = self._obeys_second, False
        try:
            yield
        finally:
            self._obeys_second = before

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._handlers[number] = signal.signal(number, self._record)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _record(self, number: int, frame: FrameType | None) -> None:
        # a process that was forked later, such as a data loader's, has inherited this handler but must end
        inherited = os.getpid() != self._process
        if inherited or (self._obeys_second and number == self._first == signal.SIGINT):
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
        self._first = self._first or number


def _command_is_gone() -> bool:
    command = multiprocessing.parent_process()
    return command is not None and not command.is_alive()
