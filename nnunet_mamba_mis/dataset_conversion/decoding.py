"""The one place where files meet their decoders: whatever a file does to one is that file's problem."""

from __future__ import annotations

import ctypes
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import Image, UnidentifiedImageError

# the largest images of the datasets have 30 million
MAX_PIXELS = 80_000_000


class BadFileError(Exception):
    """A file that cannot be used; its text is the reason, to be read after the file's path."""


@contextmanager
def decoding() -> Iterator[None]:
    """Turn all that decoders raise into BadFileError, and silence what they warn of."""
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
            raise BadFileError("needs more memory than there is to be decoded") from None
        except UnidentifiedImageError:
            raise BadFileError("is truncated or damaged, or of a rare kind that Pillow cannot read") from None
        # On damaged files decoders raise everything from struct.error to RecursionError. A list of them would never be
        # complete, and the one that it lacks would end the conversion of all other files.
        except Exception as error:
            raise BadFileError(
                f"is truncated or damaged ({' '.join(str(error).split()) or type(error).__name__})"
            ) from None


def too_large() -> BadFileError:
    """Return the error for an image that must not be decoded."""
    return BadFileError(f"claims more than {MAX_PIXELS // 10**6} million pixels: not decoded")


@contextmanager
def captured_output() -> Iterator[list[str]]:
    """Keep what C libraries print off the console, and fill the list with its lines at the end."""
    messages: list[str] = []
    with tempfile.TemporaryFile() as file:
        saved = [os.dup(1), os.dup(2)]
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield messages
        finally:
            with suppress(OSError, AttributeError, TypeError):  # no C library by this name, as on Windows
                ctypes.CDLL(None).fflush(None)  # or it would print later what it keeps in its buffer
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            for descriptor in saved:
                os.close(descriptor)
        file.seek(0)
        messages += file.read().decode(errors="replace").splitlines()
