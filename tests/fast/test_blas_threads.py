"""Who may set the number of BLAS's threads, and when it is set back."""

from __future__ import annotations

import threading
from typing import Any

import blas_tools
import pytest
import threadpoolctl

from minivit.fast import blas_threads
from minivit.fast.blas_threads import limit_threads


class Controller:
    """In the place of threadpoolctl's: the numbers in force, the latest last."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def limit(self, *, limits: int, user_api: str | None = None) -> Any:
        assert user_api == "blas", "nothing else is limited"
        self.counts.append(limits)
        return self

    def restore_original_limits(self) -> None:
        self.counts.pop()


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    made = Controller()
    monkeypatch.setattr(blas_threads, "_controller", lambda: made)
    return made


def test_the_number_holds_within_and_is_set_back_also_on_errors(controller: Controller) -> None:
    with pytest.raises(KeyError), limit_threads(1):
        assert controller.counts == [1]
        with limit_threads(3):
            assert controller.counts == [1, 3]
        assert controller.counts == [1]
        raise KeyError
    assert controller.counts == []
    with limit_threads(2):
        assert controller.counts == [2]
    assert controller.counts == []


def test_threads_that_want_one_number_share_it_and_another_waits(controller: Controller) -> None:
    inside, leave, entered = threading.Event(), threading.Event(), threading.Event()

    def same() -> None:
        with limit_threads(1):
            inside.set()
            leave.wait(10)

    def other() -> None:
        with limit_threads(4):
            entered.set()
            assert controller.counts == [4]

    threads = [threading.Thread(target=target) for target in (same, other)]
    with limit_threads(1):
        threads[0].start()
        assert inside.wait(10) and controller.counts == [1]
        threads[1].start()
        assert not entered.wait(0.05)
    assert controller.counts == [1]  # the other holder is not done
    assert not entered.wait(0.05)
    leave.set()
    assert entered.wait(10)
    for thread in threads:
        thread.join(10)
    assert controller.counts == []


def blas_numbers() -> set[int]:
    return set(blas_tools.blas_threads())


def test_the_last_holder_restores_the_number_while_the_first_thread_lives_on() -> None:
    """threadpoolctl 3.8 lets only the thread that set OpenBLAS's number set it again, as long as that thread lives."""
    before = blas_numbers()
    events = {name: threading.Event() for name in ("first in", "second in", "first out", "end")}

    def first() -> None:
        with limit_threads(3):
            events["first in"].set()
            assert events["second in"].wait(10)
        events["first out"].set()
        events["end"].wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert events["first in"].wait(10)
        with limit_threads(3):
            events["second in"].set()
            assert events["first out"].wait(10)
            assert blas_numbers() == {3}
        assert blas_numbers() == before
    finally:
        events["end"].set()
        thread.join(10)


def test_another_thread_limits_while_the_main_thread_lives() -> None:
    with limit_threads(3):
        assert blas_numbers() == {3}
    seen: list[set[int]] = []

    def limited() -> None:
        with limit_threads(2):
            seen.append(blas_numbers())
        with limit_threads(3):
            seen.append(blas_numbers())

    with threadpoolctl.threadpool_limits(1, "blas"):  # set by somebody else, in the main thread
        thread = threading.Thread(target=limited)
        thread.start()
        thread.join(10)
        assert seen == [{2}, {3}] and blas_numbers() == {1}
