"""What a training command opens: the network with its preprocessing, and pools of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..data.pictures import Pictures
from ..data.pool import Pool
from ..models.load import OpenedModel, open_by
from ..models.options import preprocessing_of
from .options import PoolOptions

Progress = Callable[[str, int, int], object]
"""Called with a place, the pictures read and their number in all."""


def open_for(spec: str, options: PoolOptions, say: Callable[[str], object]) -> OpenedModel:
    """Open a network with the preprocessing that the options ask for, and say what it is."""
    opened = open_by(spec, options)
    opened = replace(opened, preprocessing=preprocessing_of(opened, options))
    say(opened.describe())
    say(opened.preprocessing.describe())
    return opened


def read_pool(
    place: str,
    opened: OpenedModel,
    options: PoolOptions,
    say: Callable[[str], object],
    progress: Progress | None,
) -> Pool:
    """Read the pictures of a place into memory; say which could not be read."""
    pictures = Pictures(place, opened.preprocessing, limit=options.limit)

    def told(done: int, total: int) -> None:
        if progress is not None:
            progress(place, done, total)

    pool = Pool.read(pictures, max_bytes=options.max_bytes, workers=options.workers, progress=told)
    for line in pool.failed:
        say(line)
    return pool
