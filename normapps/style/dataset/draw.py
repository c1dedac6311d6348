"""Draws that depend on a name and a seed alone: the same in every shard, order and run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import count


def number(*words: int | str) -> int:
    """Hash words to a number of 64 bits, evenly distributed (BLAKE2b)."""
    text = b"\0".join(os.fsencode(str(word)) for word in words)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def share(*words: int | str) -> float:
    """Hash words to a number in [0, 1)."""
    return (number(*words) >> 11) / (1 << 53)


def order(size: int, *words: int | str) -> Iterator[int]:
    """Yield 0 … size − 1, each once, in an order that the words decide.

    The first few cost a hash each; the last ones, where a draw has mostly been drawn before, are
    taken in turn.
    """
    drawn: set[int] = set()
    for attempt in count():
        if len(drawn) == size:
            return
        index = number(*words, attempt) % size
        while index in drawn and attempt > 4 * size:
            index = (index + 1) % size
        if index not in drawn:
            drawn.add(index)
            yield index
