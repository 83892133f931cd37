"""The warning of a BLAS kernel that is older than the processor."""

from __future__ import annotations

import warnings

import pytest

from minivit.fast import blas_kernel, blas_threads

HASWELL, SKYLAKE = ({"user_api": "blas", "architecture": name} for name in ("Haswell", "SkylakeX"))


@pytest.mark.parametrize(
    ("kernel", "has", "older"),
    [
        (HASWELL, {"AVX2", "AVX512"}, "Haswell"),
        (HASWELL, {"AVX2"}, ""),
        (SKYLAKE, {"AVX2", "AVX512"}, ""),
        ({"architecture": "Nehalem"}, {"AVX2"}, "Nehalem"),
        ({"architecture": "Nehalem"}, set(), ""),
        ({"architecture": "armv8"}, set(), ""),
        ({}, {"AVX512"}, ""),
    ],
)
def test_older_than_the_processor(kernel: dict[str, str], has: set[str], older: str) -> None:
    assert blas_kernel.older_kernel([kernel], has) == older


def test_warns_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIVIT_BLAS_WARNING", raising=False)
    monkeypatch.setattr(blas_kernel, "instructions", lambda: frozenset({"AVX2", "AVX512"}))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    with pytest.warns(RuntimeWarning, match="kernel Haswell, but this processor has AVX512.*unset OPENBLAS_CORETYPE"):
        blas_kernel.warn_of_older_kernel([HASWELL])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blas_kernel.warn_of_older_kernel([SKYLAKE])
        monkeypatch.setenv("MINIVIT_BLAS_WARNING", "0")
        blas_kernel.warn_of_older_kernel([HASWELL])
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert "install a newer NumPy" in blas_kernel.advice([HASWELL])


def test_a_process_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIVIT_BLAS_WARNING", raising=False)
    monkeypatch.setattr(blas_kernel, "instructions", lambda: frozenset({"AVX2", "AVX512"}))
    monkeypatch.setattr(blas_kernel, "older_kernel", lambda libraries, known: "Haswell")
    blas_threads._controller.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with blas_threads.limit_threads(1):
                pass
    assert [each.category for each in caught] == [RuntimeWarning]


def test_libraries_and_instructions_of_this_machine() -> None:
    assert all(each["user_api"] == "blas" for each in blas_kernel.blas_libraries())
    assert blas_kernel.instructions() <= {"AVX2", "AVX512"}
