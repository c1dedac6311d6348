"""What a command's steps took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Clock:
    """Runs steps and remembers how long each took.

    Attributes:
        seconds: by the step's name, in the order of their first run; repeated ones add up.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], Result]) -> Result:
        """Run a step and return what it returns."""
        start = time.perf_counter()
        try:
            return step()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
