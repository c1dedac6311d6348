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
    geometric,
    judged,
    powers,
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
DRAWN = ("none", "batch", "online", "group")
WIDTHS = (8, 16, 16)
PICTURES, LEAST = 1200, 60


def steps_of(batch: int) -> int:
    """Steps of a training: of small batches as many as show so many pictures."""
    return max(LEAST, PICTURES // batch)


def rate_of(batch: int) -> float:
    """As the root of the batch size, up to batches of 32."""
    return 0.05 * min(1.0, batch / 32) ** 0.5


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
            wrong, loss = _trained(norm, batch, seed)
            found[f"{norm}/{batch}"], found[f"{norm} error/{batch}"] = loss, wrong
    return found


def _trained(norm: str, batch: int, seed: int) -> tuple[float, float]:
    torch.manual_seed(seed)
    model = cnn(None if norm == "none" else norm, WIDTHS, **options_of(norm, batch))
    if norm == "moving":  # what the paper puts in the place of centring
        normalize_weights_(model[:-1], "centered")
    training, test = digits()
    batches = draws(training, batch, steps_of(batch), seed)
    train(model, batches, model.parameters(), lr=rate_of(batch), momentum=0.9)
    return judged(model, test)


def _report(found: Found) -> Report:
    from results import table

    axes = ("batch size", "test loss")
    plot = curves(found, DRAWN, BATCHES, axes, log="xy", marks=True)
    rows = [
        [f"{norm}: {word}", *(powers(found, f"{norm}{kind}/{size}") for size in BATCHES)]
        for kind, word in (("", "loss"), (" error", "error, %"))
        for norm in NORMS
    ]
    return Report(
        f"Three convolutions of {', '.join(map(str, WIDTHS))} channels, the last at 2×2 pixels, "
        f"and a classifier; SGD with momentum 0.9, as many steps as show {PICTURES} pictures, at "
        f"least {LEAST}; the rate is 0.05, below batches of 32 times the root of their share. "
        "Compare within a batch size: larger batches saw more pictures. Test loss and error, in "
        "inference; `ghost` normalizes 8 pictures at a time, `moving` (MABN) has centred weights, "
        "`group` 4 groups.",
        plot,
        "Test loss by batch size, a line a norm",
        _claims(found),
        table(["batch size", *map(str, BATCHES)], rows),
    )


def _claims(found: Found) -> list[Claim]:
    loss = {norm: [geometric(found, f"{norm}/{size}") for size in BATCHES] for norm in NORMS}
    two, many = BATCHES[0], BATCHES[-2]
    small = {norm: values[0] for norm, values in loss.items()}
    large = {norm: values[-2] for norm, values in loss.items()}
    margins = {norm: found[f"log {norm}/{two}"].margin for norm in NORMS}
    return [
        Claim(
            f"With batches of {many} nothing is better than batch normalization (test loss "
            f"{large['batch']:.2f}, group normalization {large['group']:.2f}); with batches of "
            f"{two} group normalization is ahead, {powers(found, f'group/{two}')} against "
            f"{powers(found, f'batch/{two}')}: the direction of the crossing that Wu & He 2018 "
            "found on ImageNet, within the intervals.",
            found[f"log group/{two}"].high > found[f"log batch/{two}"].low
            and large["batch"] <= min(large.values()) * 1.05
            and small["group"] < small["batch"],
        ),
        Claim(
            f"What pools over more than the present batch is steadier with batches of {two}: "
            f"online ends at {powers(found, f'online/{two}')} (Chiley et al. 2019) and moving at "
            f"{powers(found, f'moving/{two}')} (Yan et al. 2020), batch normalization at "
            f"{powers(found, f'batch/{two}')}; renorm ({small['renorm']:.2f}; Ioffe 2017) is no "
            f"better than that in so short a training, and moving is behind with batches of {many} "
            f"({large['moving']:.2f}).",
            max(margins["online"], margins["moving"]) < margins["batch"]
            and max(small["online"], small["moving"]) < small["batch"] < 1.1 * small["renorm"],
        ),
        Claim(
            "To be independent of the batch is not enough: instance normalization, with 4 pixels a "
            f"channel in the last layer, ends at {small['instance']:.2f} with batches of {two}; "
            "FRN, which Singh & Krishnan 2020 found above batch normalization at every size, is at "
            f"{small['frn']:.2f}, and at {large['frn']:.2f} with batches of {many}.",
            small["instance"] > small["group"] and large["frn"] > large["batch"],
        ),
    ]


ALTERNATIVES = Part("Batch norm and its alternatives", _measure, _report)
