"""Options of `norm analyze`."""

from __future__ import annotations

import pytest

from normapps.analysis.analyze_options import ANALYSES, AnalyzeOptions
from normapps.errors import InputError


def test_lists_with_commas() -> None:
    options = AnalyzeOptions(what="gap, scales,gap", sizes="32,2, 8")
    assert options.analyses == ("gap", "scales")
    assert options.batch_sizes == (2, 8, 32)
    assert AnalyzeOptions().analyses == ANALYSES


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"what": "scale"}, "--what: unknown analysis 'scale'; did you mean 'scales'"),
        ({"what": ","}, "--what ',': name one or more of conditioning"),
        ({"sizes": "1,2"}, "--sizes 1,2: must be whole numbers from 2"),
        ({"sizes": "2,x"}, "--sizes 2,x"),
        ({"sizes": ""}, "--sizes"),
        ({"limit": 1}, "--limit 1"),
        ({"lr": 0.0}, "--lr"),
        ({"weight_decay": -1e-4}, "--weight-decay"),
    ],
)
def test_what_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        AnalyzeOptions(**values)  # type: ignore[arg-type]
