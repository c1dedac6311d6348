from __future__ import annotations

from concurrent.futures import ALL_COMPLETED, wait
from typing import Any

import pytest
import torch

from normapps.style.dataset import local
from normapps.style.dataset.local import each, worker_count


def test_what_is_done_comes_before_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an interrupt would take results along that were finished beside it."""

    def wait_for_all(futures: Any, **_: Any) -> Any:
        return wait(futures, return_when=ALL_COMPLETED)

    monkeypatch.setattr(local, "wait", wait_for_all)
    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(each(lambda item: item * item // item, iter(range(8)), 4))
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 7]


def test_no_more_than_two_a_thread_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Any:
        for item in range(50):
            taken.append(item)
            yield item

    results = each(lambda item: item, items(), 3)
    next(results)
    assert len(taken) == 6
    results.close()
    assert len(taken) == 6


def test_every_thread_computes_with_one_core() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(each(lambda _: torch.get_num_threads(), iter("ab"), 2)) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_workers_are_one_a_core_and_few_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(32)), raising=False)
    assert worker_count(None, torch.device("cpu")) == 32
    assert worker_count(None, torch.device("cuda")) == 8
    assert worker_count(3, torch.device("cpu")) == 3
