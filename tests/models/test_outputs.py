"""Logits in whatever a classifier returns, and one line where there are none."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from normapps.errors import InputError
from normapps.models.outputs import logits_of

LOGITS = torch.randn(3, 5)
OTHER = torch.randn(3, 7)


class Named(NamedTuple):
    """As torchvision's GoogLeNet returns them in training."""

    logits: torch.Tensor
    aux_logits: torch.Tensor


class Output(OrderedDict):  # type: ignore[type-arg]
    """A mapping whose entries are attributes too, as transformers has it."""

    __getattr__ = OrderedDict.__getitem__


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"features": OTHER, "logits": LOGITS},
        {"out": LOGITS, "aux": OTHER},
        {"logits": None, "out": LOGITS},
        Output(loss=None, logits=LOGITS),
        SimpleNamespace(logits=LOGITS, hidden_states=None),
        (LOGITS, OTHER),
        [LOGITS],
        ({"logits": LOGITS}, OTHER),
        Named(LOGITS, OTHER),
    ],
    ids=lambda output: type(output).__name__,
)
def test_the_logits_are_found(output: Any) -> None:
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"boxes": OTHER, "scores": OTHER}, r"a dict of boxes, scores, and no logits"),
        ({}, r"a dict of nothing"),
        (None, "returns NoneType"),
        ((), "returns tuple"),
        (SimpleNamespace(hidden=LOGITS), "returns SimpleNamespace"),
        ({"logits": [1.0]}, "a dict of logits"),
        (torch.zeros(3), r"\(3,\), not logits \(N, C\)"),
        (torch.zeros(3, 5, 4, 4), r"\(3, 5, 4, 4\), not logits"),
    ],
)
def test_where_there_are_none_one_line_says_what_there_is(output: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        logits_of(output)
    assert "\n" not in str(caught.value)
