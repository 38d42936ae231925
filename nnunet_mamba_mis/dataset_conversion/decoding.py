"""Run decoders so that any failure becomes a problem of the file that caused it."""

from __future__ import annotations

import ctypes
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image, UnidentifiedImageError

# the largest images in the datasets have 30 million pixels
MAX_PIXELS = 80_000_000


class BadFileError(Exception):
    """A file that cannot be used; its text is the reason, to be printed after the file's path."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn every exception of a decoder into BadFileError, and silence its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except BadFileError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise too_large() from None
        except MemoryError:
            raise BadFileError("needs more memory to decode than is available") from None
        except UnidentifiedImageError:
            raise BadFileError("is truncated or damaged, or has a rare format that Pillow cannot read") from None
        # On damaged files decoders raise anything from struct.error to RecursionError. A list would never be complete,
        # and an exception that it lacks would stop the conversion of all other files.
        except Exception as error:
            raise BadFileError(
                f"is truncated or damaged ({' '.join(str(error).split()) or type(error).__name__})"
            ) from None


def too_large() -> BadFileError:
    """Return the error for an image that is too large to decode."""
    return BadFileError(f"claims more than {MAX_PIXELS // 10**6} million pixels and was not decoded")


@contextmanager
def captured_output() -> Iterator[list[str]]:
    """Capture what C libraries print; the list receives the lines when the block ends."""
    messages: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield messages
        finally:
            with suppress(OSError, AttributeError, TypeError):  # Windows has no C library by this name
                ctypes.CDLL(None).fflush(None)  # otherwise buffered output would appear later
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
        file.seek(0)
        messages += file.read().decode(errors="replace").splitlines()
