"""Signals that stop training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """While entered, SIGTERM and Ctrl-C are noted instead of obeyed.

    A second Ctrl-C is obeyed, as someone is waiting. A second SIGTERM is not: clusters may send several at once.
    Signals that are ignored (`nohup`), or that the program handles itself, are left as they are, and so are all outside
    of the main thread, where Python delivers none.

    Args:
        spawned: Whether this is one of several training processes. There no second Ctrl-C is obeyed:
            when the command that started them has died, torch has the kernel send them SIGINT, once or more often. As
            they may ignore it (a shell's background job), the death itself counts as SIGTERM too.
    """

    def __init__(self, spawned: bool = False) -> None:
        self._first = 0
        self._spawned = spawned
        self._obeys_second = not spawned
        self._process = os.getpid()
        self._handlers: dict[int, signal.Handlers] = {}

    @property
    def signal(self) -> int:
        """Number of the first signal that came, or 0."""
        if not self._first and self._spawned and _command_is_gone():
            return signal.SIGTERM
        return self._first

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While entered, a second Ctrl-C is not obeyed either: for what is short and should not be torn."""
        before, self._obeys_second = self._obeys_second, False
        try:
            yield
        finally:
            self._obeys_second = before

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._handlers[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        # a process forked since then, as of a data loader, has inherited this handler but shall end
        inherited = os.getpid() != self._process
        if inherited or (self._obeys_second and number == self._first == signal.SIGINT):
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
        self._first = self._first or number


def _command_is_gone() -> bool:
    command = multiprocessing.parent_process()
    return command is not None and not command.is_alive()
