"""Run work in a second thread, in order, with bounds on waiting items."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()


class Ahead(Iterator[T]):
    """Items that a thread reads ahead from an iterator, starting at once.

    Args:
        items: Iterable that the thread reads to its end, or until `close`, and then closes if it is a generator.
        most: Largest number of waiting items.
    """

    def __init__(self, items: Iterable[T], most: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(most)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(iter(items),), daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        item, error = self._queue.get()
        if item is _END:
            self._queue.put((_END, None))  # for the next call
            if error is not None:
                raise error
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread, and drop waiting items."""
        self._stopped.set()
        # the thread may be waiting for room in the queue
        while self._thread.is_alive() or not self._queue.empty():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.05)
        self._queue.put((_END, None))

    def _read(self, items: Iterator[T]) -> None:
        error: BaseException | None = None
        try:
            for item in items:
                self._queue.put((item, None))
                if self._stopped.is_set():
                    break
        except BaseException as raised:
            error = raised
        finally:
            if hasattr(items, "close"):
                items.close()
            self._queue.put((_END, error))


def behind(function: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[R]:
    """Yield a function's results in order: a thread calls the function while this thread makes the next items.

    Args:
        function: Called for one item at a time.
        items: Iterable that is read in this thread.
        most: Largest number of items that wait for the function.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (len(waiting) > most or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
