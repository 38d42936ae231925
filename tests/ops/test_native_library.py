"""The native library: loading, instruction sets, threads and memory."""

from __future__ import annotations

import ctypes
import sys

import pytest

from nnunet_mamba_mis.installation import NOTE, OK, inspect_installation
from nnunet_mamba_mis.ops import memory
from nnunet_mamba_mis.ops import native_library as native
from nnunet_mamba_mis.utils.errors import UserError
from support.scans import INSTRUCTION_SETS, needs_native, run_program


@needs_native
def test_library_with_other_structs_is_refused(monkeypatch):
    class Threads(ctypes.Structure):
        _fields_ = (("count", ctypes.c_int64),)

    monkeypatch.setattr(native, "STRUCTS", (Threads,))
    with pytest.raises(OSError, match="Threads"):
        native.load_library.__wrapped__("baseline")


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets MAMBA_MIS_INSTRUCTION_SET; nothing is cached, as in a new process."""

    def forget():
        native.library.cache_clear()
        native.why_unavailable.cache_clear()

    forget()
    yield lambda name: monkeypatch.setenv("MAMBA_MIS_INSTRUCTION_SET", name)
    forget()


def doctor_on_cpp():
    (finding,) = (f for f in dict(inspect_installation())["Scan backends, fastest first"] if f.text.startswith("cpp: "))
    return finding


@needs_native
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_environment_variable_selects_the_instruction_set(name, environment):
    environment(name)
    assert native.library() is native.load_library(name)
    finding = doctor_on_cpp()
    assert finding.status == OK and f"{name} code" in finding.text


@needs_native
def test_empty_environment_variable_keeps_the_best_instruction_set(environment):
    environment("")
    assert native.instruction_set() == INSTRUCTION_SETS[0]


@needs_native
@pytest.mark.parametrize("name", ["sse9", "AVX2", *sorted({*native.INSTRUCTION_SETS} - {*INSTRUCTION_SETS})])
def test_unusable_instruction_set_is_never_loaded_and_reported(name, environment):
    environment(name)
    with pytest.raises(UserError, match=f"MAMBA_MIS_INSTRUCTION_SET='{name}'.*{', '.join(INSTRUCTION_SETS)}"):
        native.library()
    assert not native.available()
    finding = doctor_on_cpp()
    assert finding.status == NOTE and native.why_unavailable() in finding.text


@pytest.mark.slow
@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_native_code_shares_torchs_threads_despite_other_openmp_runtimes():
    """Threads of two pools would spin while they wait for each other."""
    assert int(run_program("native_threads.py")) == 0


@pytest.mark.parametrize(
    ("variable", "kept"), [(None, True), ("MALLOC_TRIM_THRESHOLD_", False), ("GLIBC_TUNABLES", False)], ids=str
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_configured_malloc(variable, kept, monkeypatch):
    for name in (*memory._VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "glibc.malloc.top_pad=0")
    calls = []
    libc = type("Library", (), {"mallopt": staticmethod(lambda *arguments: calls.append(arguments) or 1)})
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    memory.keep_freed_memory.__wrapped__()
    assert bool(calls) == kept


def test_system_whose_c_library_has_no_name_keeps_its_malloc(monkeypatch):
    """On Windows, ctypes raises TypeError for None."""

    def as_on_windows(name):
        raise TypeError(f"argument of type {type(name)} is not iterable")

    for name in (*memory._VARIABLES, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", as_on_windows)
    memory.keep_freed_memory.__wrapped__()


def test_openmp_runtime_is_not_looked_for_where_loaded_libraries_cannot_be_named(monkeypatch):
    """Windows has none of dlopen's flags, so native code uses threads of its own."""
    monkeypatch.delattr(native.os, "RTLD_NOLOAD")
    assert native._openmp_parallel.__wrapped__() is None


def test_libraries_have_the_suffix_of_the_system(monkeypatch):
    assert native._library_path("avx2").name == "_native_avx2.so"
    monkeypatch.setattr(native, "_WINDOWS", True)
    assert native._library_path("avx2").name == "_native_avx2.dll"
