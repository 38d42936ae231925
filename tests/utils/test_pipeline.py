"""Work in threads keeps its order, stays bounded, and ends when its consumer does."""

from __future__ import annotations

import itertools
import threading
from contextlib import closing

import pytest

from nnunet_mamba_mis.utils.pipeline import Ahead, behind


def test_items_come_in_order_and_reading_ahead_is_bounded():
    taken = itertools.count()
    items = Ahead((next(taken) for _ in range(1000)), most=3)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()
    assert next(taken) < 15
    with pytest.raises(StopIteration):
        next(items)


def test_error_of_the_source_comes_after_its_items():
    def failing():
        yield 1
        raise OSError("gone")

    items = Ahead(failing(), most=3)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises((OSError, StopIteration)):
            next(items)


def test_results_come_in_order_from_one_other_thread():
    threads = set()

    def double(number: int) -> int:
        threads.add(threading.get_ident())
        return 2 * number

    with closing(behind(double, range(50), most=3)) as results:
        assert list(results) == [2 * number for number in range(50)]
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_error_of_the_work_is_raised_after_earlier_results():
    results = behind(lambda number: 1 / (2 - number), range(5), most=2)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
