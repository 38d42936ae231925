"""The native library: how it is loaded, and the threads that it runs on."""

from __future__ import annotations

import ctypes
import sys

import pytest

from nnunet_mamba_mis.ops import memory
from nnunet_mamba_mis.ops import native_library as native
from support.scans import needs_native, run_program


@needs_native
def test_library_with_other_structs_is_refused(monkeypatch):
    class Threads(ctypes.Structure):
        _fields_ = (("count", ctypes.c_int64),)

    monkeypatch.setattr(native, "STRUCTS", (Threads,))
    with pytest.raises(OSError, match="Threads"):
        native.load_library.__wrapped__("baseline")


@pytest.mark.slow
@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_native_code_works_with_the_threads_of_torch_beside_other_openmp_runtimes():
    """Threads of two pools would spin against each other."""
    assert int(run_program("native_threads.py")) == 0


@pytest.mark.parametrize(
    ("variable", "kept"), [(None, True), ("MALLOC_TRIM_THRESHOLD_", False), ("GLIBC_TUNABLES", False)], ids=str
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_has_set_malloc(variable, kept, monkeypatch):
    for name in (*memory._VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "glibc.malloc.top_pad=0")
    calls = []
    libc = type("Library", (), {"mallopt": staticmethod(lambda *arguments: calls.append(arguments) or 1)})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    memory.keep_freed_memory.__wrapped__()
    assert bool(calls) == kept
