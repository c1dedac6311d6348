"""The engine of one process: threads that read, paint and write a picture each.

On a CPU every thread computes with one core, so that no core waits for another and the same bytes
come out however many threads there are. On a GPU the network takes one picture at a time, and the
threads keep it supplied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

import torch

from ...engine.threads import one_thread

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_FOR_A_GPU = 8


def worker_count(wanted: int | None, device: torch.device) -> int:
    """Return how many threads to use: one a core, for a GPU up to 8."""
    if wanted is not None:
        return wanted
    found = getattr(os, "sched_getaffinity", None)
    cores = len(found(0)) if found else os.cpu_count() or 1
    return cores if device.type == "cpu" else min(_MOST_FOR_A_GPU, cores)


def each(work: Callable[[Item], Result], items: Iterator[Item], workers: int) -> Iterator[Result]:
    """Do work on items by threads; results come as they are done, at most two items a thread ahead.

    Closing the iterator drops what has not begun and waits for what has.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dataset")
    running: set[Future[Result]] = set()
    try:
        with one_thread():
            while True:
                running |= {
                    pool.submit(work, item) for item in islice(items, 2 * workers - len(running))
                }
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=_has_failed):  # what is made first
                    yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _has_failed(future: Future[Any]) -> bool:
    return future.exception() is not None
