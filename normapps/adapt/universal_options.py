"""Options of `normapps adapt universal`; no torch here, the flags come from this class."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from ..errors import InputError, UsageError
from ..options import option
from ..training.options import TRAINED, FitOptions, PoolOptions
from .training.options import RecipeOptions


@dataclass(frozen=True)
class UniversalOptions(FitOptions, PoolOptions):
    """Which tasks are trained on a shared network, and how.

    Raises:
        UsageError: no task, or a test set without its task.
        InputError: a task that is not NAME=PLACE, a name twice, or a value out of range.
    """

    train: str = option(
        "norm",
        "what a task learns: norm (norm layers and classifier), head, or all (nothing is shared)",
        choices=TRAINED,
    )
    task: tuple[str, ...] = option((), "NAME=PLACE of labelled pictures; repeatable")
    test: tuple[str, ...] = option(
        (), "NAME=PLACE to measure a task on; else a part is held out; repeatable"
    )
    hold_out: int = option(
        5, "without --test: measure on every n-th picture, not trained on (0: on all)", low=0
    )
    baseline: str = option(
        "", "run folder to compare with, such as one of --train all with the same tasks"
    )
    overwrite: bool = option(False, "start tasks anew that the folder holds")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.task:
            raise UsageError("--task is missing; give NAME=PLACE, such as --task digits=DIR")
        tasks = self.tasks
        for name in self.tests:
            if name not in tasks:
                raise UsageError(f"--test {name}=…: there is no --task {name}=…")

    @property
    def tasks(self) -> dict[str, str]:
        """Place by name of the tasks."""
        return named(self.task, "--task")

    @property
    def tests(self) -> dict[str, str]:
        """Place by name of the test sets."""
        return named(self.test, "--test")

    def recipe(self, task: str) -> RecipeOptions:
        """Return how one task is trained."""
        shared = {each.name: getattr(self, each.name) for each in fields(FitOptions)}
        chosen = RecipeOptions(method="source", **shared)
        own = f"{self.baseline}/{task}/model" if self.baseline else ""
        return replace(chosen, baseline=own)


def named(texts: tuple[str, ...], flag: str) -> dict[str, str]:
    """Read NAME=PLACE texts.

    Raises:
        InputError: one that is none, or a name twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or not place or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            raise InputError(f"{flag} {text}: must be NAME=PLACE, NAME of letters and digits")
        if name in found:
            raise InputError(f"{flag} {name}: is given twice; name each task once")
        found[name] = place
    return found
