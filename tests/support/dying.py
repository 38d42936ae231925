"""A job for worker processes, in a module that they can import."""

import os


def square_or_die(number: int) -> int:
    """Return the square of a number; for a negative number -n, send signal n to this process first."""
    if number < 0:
        os.kill(os.getpid(), -number)
    return number**2
