"""What is set in the C library about freed memory, and when nothing is set."""

from __future__ import annotations

from typing import Any

import pytest

from minivit.fast import freed_memory


class Library:
    """In the place of glibc."""

    def __init__(self, answer: int = 1) -> None:
        self.asked: list[tuple[int, int]] = []
        self.answer = answer

    def mallopt(self, name: int, value: int) -> int:
        self.asked.append((name, value))
        return self.answer

    def malloc_trim(self, kept: int) -> int:
        assert kept == 0
        return self.answer


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keeps freed memory under a setting of MINIVIT_KEEP_MEMORY; the answer, and the options set in the library."""

    def keep(setting: str | None, library: Library | None) -> tuple[bool, list[tuple[int, int]]]:
        monkeypatch.delenv("MINIVIT_KEEP_MEMORY", raising=False)
        if setting is not None:
            monkeypatch.setenv("MINIVIT_KEEP_MEMORY", setting)
        monkeypatch.setattr(freed_memory, "_glibc", lambda: library)
        return freed_memory.keep_freed_memory.__wrapped__(), library.asked if library else []

    return keep


@pytest.mark.parametrize("setting", [None, "1", ""])
def test_large_freed_blocks_are_kept_in_one_arena(told: Any, setting: str | None) -> None:
    """M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h."""
    assert told(setting, Library()) == (True, [(-8, 1), (-3, 32 * 2**20), (-1, 2**30)])


def test_the_environment_forbids_it_and_other_c_libraries_cannot(told: Any) -> None:
    assert told("0", Library()) == (False, [])
    assert told(None, None) == (False, [])
    assert told(None, Library(answer=0))[0] is False


def test_freed_memory_is_given_back_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, expected in ((Library(), True), (Library(0), False), (None, False)):
        monkeypatch.setattr(freed_memory, "_glibc", lambda library=library: library)
        assert freed_memory.release_freed_memory() is expected
