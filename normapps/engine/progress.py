"""Progress of long work: a live bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

_LINE_EVERY = 60.0
"""Seconds between lines where no terminal shows the bar."""


class _Shown:
    """A bar that is on the screen inside a `with` block."""

    _bar: Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


class TrainingProgress(_Shown):
    """Steps done, losses (running means) and time left, on stderr.

    Args:
        total: steps of the whole run.
        done: steps taken before.
        enabled: False for the processes that print nothing.
    """

    def __init__(self, total: int, done: int = 0, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._total, self._first, self._enabled = total, done, enabled
        self._live = enabled and console.is_terminal
        self._means: dict[str, float] = {}
        self._start = self._line = time.monotonic()
        # the losses take what is left of the line; without that rich cuts the time left
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._bar = Progress(
            BarColumn(8),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}", markup=False, table_column=rest),
            console=console,
            disable=not self._live,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, losses="")

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show that `step` steps are done, and the running mean of each value."""
        for name, value in values.items():
            self._means[name] = 0.98 * self._means.get(name, value) + 0.02 * value
        text = "  ".join(f"{name} {value:.3g}" for name, value in self._means.items())
        self._bar.update(self._task, completed=step, losses=text)
        now = time.monotonic()
        if self._enabled and not self._live and (now - self._line > _LINE_EVERY):
            self._line = now
            pace = (now - self._start) / max(1, step - self._first)
            left = pace * (self._total - step) / 60
            print(f"{step}/{self._total}  {left:.0f} min left  {text}", file=sys.stderr, flush=True)


class BatchProgress(_Shown):
    """Items done, the one at work and the time left, on stderr.

    Args:
        total: items of the job.
        enabled: False shows nothing, but for what is printed.
    """

    def __init__(self, total: int, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._total, self._done, self._enabled = total, 0, enabled
        self._stage = ""
        self._live = enabled and console.is_terminal
        self._start = self._line = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            disable=not self._live,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total)

    def print(self, line: str) -> None:
        """Print a line to stderr, above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stage(self, name: str, total: int) -> None:
        """Show that one more item of a stage is done; a new name begins to count anew."""
        if name != self._stage:
            self._stage, self._done, self._start = name, 0, time.monotonic()
            self._bar.reset(self._task, total=total)
        self.advance(name, total)

    def advance(self, name: str, total: int | None = None) -> None:
        """Show that one more item is done, and which; `total` mends what was not known at first."""
        self._done += 1
        self._total = self._total if total is None else total
        self._bar.update(self._task, completed=self._done, total=self._total, description=name)
        now = time.monotonic()
        if self._enabled and not self._live and now - self._line > _LINE_EVERY:
            self._line = now
            left = (now - self._start) / self._done * (self._total - self._done) / 60
            self.print(f"{self._done}/{self._total}  {left:.0f} min left  {name}")
