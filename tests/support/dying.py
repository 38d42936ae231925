"""A job for worker processes, which have to be able to import it."""

import os


def square_or_die(number: int) -> int:
    """Square a number; a negative one is a signal that ends this process."""
    if number < 0:
        os.kill(os.getpid(), -number)
    return number**2
