"""Undo: the handle of every function that changes a model in place."""

from __future__ import annotations

from collections.abc import Callable


class Undo:
    """Steps that take a change back, run once, the last first.

    Also a context manager: the change is taken back where the block ends.

    Example:
        >>> with apply_(model, population):
        ...     evaluate(model)
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Remember one more step; it will run before those added earlier."""
        self._steps.append(step)

    def __call__(self) -> None:
        """Take everything back. A second call does nothing."""
        while self._steps:
            self._steps.pop()()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *error: object) -> None:
        self()
