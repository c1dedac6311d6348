"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute every operation on the CPU with one thread; afterwards as before.

    For workers that have a core each, and for algorithms of thousands of tiny steps: wherever
    another process holds one of the cores, each step waits until that one's turn is over.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
