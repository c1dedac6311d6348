"""What a resumed run takes of the options of a call."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from normapps.errors import UsageError
from normapps.gan.resuming import resumed_options


@dataclass(frozen=True)
class Some:
    """Options of which `rate` makes a run."""

    rate: int = 1
    save_every: int = 2
    stop_after: int = 0
    overwrite: bool = False


SAVED = Some(rate=5, save_every=6, stop_after=7, overwrite=True)


def taken(given: Some, *names: str) -> Some:
    return resumed_options(SAVED, given, names, fixed=["rate"])


def test_what_was_not_given_is_the_runs_but_for_what_is_of_one_call() -> None:
    assert taken(Some()) == Some(rate=5, save_every=6, stop_after=0, overwrite=False)


def test_what_may_change_is_taken_where_it_was_given() -> None:
    given = Some(save_every=3, stop_after=4)
    assert taken(given, "save_every", "stop_after") == Some(5, 3, 4)
    assert taken(given) == Some(5, 6, 4)
    assert taken(Some(), "save_every") == Some(5, 2)  # its default, typed


def test_what_may_not_change_is_refused_unless_it_is_the_same() -> None:
    assert taken(Some(rate=5), "rate") == Some(5, 6)
    with pytest.raises(UsageError, match=r"^--resume --rate 1: the run was started with 5; leave"):
        taken(Some(), "rate")
    with pytest.raises(UsageError, match="--resume --overwrite: contradict each other"):
        taken(Some(overwrite=True), "overwrite")
