"""What a run leaves: names of folders, how a network is made again, the verdict."""

from __future__ import annotations

import torch

from normapps.adapt.training.evaluation import judge
from normapps.adapt.training.publishing import folder_names, with_steps
from normapps.training.evaluation import Score


def test_one_folder_or_one_a_target() -> None:
    assert folder_names(("art",), 1) == ["model"]
    assert folder_names((), 1) == ["model"]
    assert folder_names(("art", "a b/c"), 1) == ["model", "model"]
    names = folder_names(("art", "a b/c", "art"), 3)
    assert names == ["model-art", "model-a-b-c", "model-art-2"]


def test_steps_follow_those_that_were_taken_before() -> None:
    base = {"builder": "timm", "arguments": {"name": "resnet18"}}
    first, second = {"to": "ibn"}, {"to": "cholesky"}
    assert with_steps(base, ()) == base
    once = with_steps(base, (first,))
    assert once == {"builder": "converted", "arguments": {"base": base, "steps": [first]}}
    assert with_steps(once, (second,))["arguments"] == {"base": base, "steps": [first, second]}


def answers(right: int, of: int) -> torch.Tensor:
    return torch.arange(of) < right


def test_the_verdict_is_the_interval_of_the_difference() -> None:
    assert judge([]).verdict == "undecided"
    alone = judge([Score("art", answers(80, 100))])
    assert alone.verdict == "undecided"
    assert "art 80.0 %" in alone.reason
    assert "--baseline" in alone.reason
    better = judge([Score("art", answers(80, 100), answers(50, 100))])
    assert better.verdict == "recommended"
    assert better.reason.startswith("+30.0 points on 100 pictures")
    worse = judge([Score("art", answers(50, 100), answers(80, 100))])
    assert worse.verdict == "not recommended"
    near = judge([Score("art", answers(51, 100), answers(50, 100))])
    assert near.verdict == "undecided"
    both = judge([Score(n, answers(60, 100), answers(50, 100)) for n in ("art", "sketch")])
    assert "on 200 pictures" in both.reason
