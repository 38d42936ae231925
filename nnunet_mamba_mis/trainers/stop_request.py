"""Signals that ask a training to end."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class StopRequest:
    """While entered, SIGTERM and Ctrl-C are noted instead of obeyed.

    A second Ctrl-C is obeyed, as someone is waiting. A second SIGTERM is not: clusters may send several at once.
    Signals that are ignored (`nohup`), or that the program handles itself, are left as they are, and so are all outside
    of the main thread, where Python delivers none.

    Attributes:
        signal: Number of the first signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._process = os.getpid()
        self._handlers: dict[int, signal.Handlers] = {}

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
        if inherited or number == self.signal == signal.SIGINT:
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
        self.signal = self.signal or number
