"""Tutorial: batch norm and what replaces it, by the size of the batch."""

from __future__ import annotations

from typing import Any

import torch
from tutorial_common import (
    Claim,
    Found,
    Part,
    Report,
    cnn,
    curves,
    digits,
    draws,
    error,
    final,
    spread,
    train,
)

from normapps.norm.weight import normalize_weights_

BATCHES = (2, 8, 64, 256)
NORMS = (
    "none",
    "batch",
    "ghost",
    "renorm",
    "moving",
    "online",
    "group",
    "layer",
    "instance",
    "frn",
)
DRAWN = ("none", "batch", "renorm", "online", "group", "frn")
PICTURES, LEAST = 800, 60


def steps_of(batch: int) -> int:
    """Steps of a training: of small batches as many as show so many pictures."""
    return max(LEAST, PICTURES // batch)


def rate_of(batch: int) -> float:
    """As the root of the batch size, up to batches of 32."""
    return 0.1 * min(1.0, batch / 32) ** 0.5


def options_of(norm: str, batch: int) -> dict[str, Any]:
    """What a layer needs to be told in so short a training."""
    steps = steps_of(batch)
    given: dict[str, dict[str, Any]] = {
        "ghost": {"num_splits": max(1, batch // 8)},
        "renorm": {"warmup": steps // 4, "r_steps": steps // 2, "d_steps": steps // 2},
        "moving": {"warmup": steps // 8},
        "online": {"rate": 0.01, "rate_backward": 0.05},
        "group": {"num_groups": 4},
    }
    return given.get(norm, {})


def _measure(seed: int) -> dict[str, float]:
    found = {}
    for norm in NORMS:
        for batch in BATCHES:
            loss, wrong = _trained(norm, batch, seed)
            found[f"{norm}/{batch}"], found[f"{norm} loss/{batch}"] = wrong, loss
    return found


def _trained(norm: str, batch: int, seed: int) -> tuple[float, float]:
    torch.manual_seed(seed)
    model = cnn(None if norm == "none" else norm, (16, 32), **options_of(norm, batch))
    if norm == "moving":  # what the paper puts in the place of centring
        normalize_weights_(model[:-1], "centered")
    training, test = digits()
    batches = draws(training, batch, steps_of(batch), seed)
    losses = train(model, batches, model.parameters(), lr=rate_of(batch), momentum=0.9)
    return final(losses), error(model, test)


def _report(found: Found) -> Report:
    from results import table

    plot = curves(
        found, list(DRAWN), BATCHES, ("batch size", "test error, %"), log="xy", marks=True
    )
    rows = [[norm, *(spread(found[f"{norm}/{size}"], 1) for size in BATCHES)] for norm in NORMS]
    return Report(
        "", plot, "Test error by batch size", [Claim("")], table(["norm", *map(str, BATCHES)], rows)
    )


ALTERNATIVES = Part("Batch norm and its alternatives", _measure, _report)
