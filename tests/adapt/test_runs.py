"""Runs of an evaluation: which there are, and that each picture comes once in each domain."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normapps.adapt.evaluate_options import EvaluateOptions
from normapps.adapt.runs import Run, batches_of, planned
from normapps.errors import InputError


def test_runs_are_all_combinations_once() -> None:
    options = EvaluateOptions(
        methods=("tent",),
        corrupt=("fog:1",),
        batch_size=(4, 8, 4),
        stream=("shift", "continual"),
        seeds=2,
        seed=5,
    )
    runs = planned(options)
    assert len(runs) == len(set(runs)) == 2 * 2 * 2 * (2 + 1)
    assert {run.seed for run in runs} == {5, 6}
    domains = {(run.stream, run.domains) for run in runs}
    both = ("continual", ("clean", "fog:1"))
    assert domains == {("shift", ("clean",)), ("shift", ("fog:1",)), both}


@given(
    stream=st.sampled_from(["shift", "continual", "mixed", "sorted"]),
    count=st.integers(1, 40),
    size=st.integers(1, 12),
    domains=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_picture_comes_once_in_every_domain(
    stream: str, count: int, size: int, domains: int, seed: int
) -> None:
    names = tuple("abc"[:domains])
    labels = torch.arange(count) % 3
    batches = batches_of(Run(stream, names, "source", size, seed), count, labels)
    seen = Counter((name, int(i)) for parts in batches for name, each in parts for i in each)
    assert seen == Counter((name, i) for name in names for i in range(count))
    lengths = [sum(len(each) for _, each in parts) for parts in batches]
    assert max(lengths) <= size + (size > 1)
    if size > 1 and count > 1:
        assert min(lengths) > 1
    if stream == "sorted":
        order = torch.cat([each for parts in batches for _, each in parts])
        assert (labels[order].view(domains, count).diff(dim=1) >= 0).all()


def test_methods_see_the_same_order_and_seeds_another() -> None:
    def order(method: str, seed: int) -> list[int]:
        batches = batches_of(Run("shift", ("clean",), method, 4, seed), 20)
        return [int(i) for parts in batches for _, each in parts for i in each]

    assert order("tent", 0) == order("source", 0)
    assert order("tent", 0) != order("tent", 1)


def test_sorting_needs_labels() -> None:
    with pytest.raises(InputError, match="needs a label of every sample"):
        batches_of(Run("sorted", ("clean",), "source", 4, 0), 10)
