"""Who may set the number of BLAS's threads, and when it is set back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from minivit.fast import blas
from minivit.fast.blas import limit_threads


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

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        self.restore_original_limits()


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    made = Controller()
    monkeypatch.setattr(blas, "_controller", lambda: made)
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
