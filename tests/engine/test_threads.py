"""One thread for a while."""

from __future__ import annotations

import pytest
import torch

from normapps.engine.threads import one_thread


def _fail_within() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            _fail_within()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
