"""Tutorial: normalizing weights against normalizing activations."""

from __future__ import annotations

import torch
from torch import nn
from tutorial_common import (
    Claim,
    Found,
    Part,
    Report,
    curves,
    digits,
    draws,
    error,
    final,
    geometric,
    mlp,
    powers,
    train,
    vectors,
)

from normapps.norm.weight import WEIGHT_METHODS, normalize_weights_

DEPTH, STEPS, BATCH = 8, 120, 64
RATES = (0.1, 0.3)
ACTIVATIONS = ("batch", "layer")
METHODS = ("none", *ACTIVATIONS, *WEIGHT_METHODS, "standardized + layer")
DRAWN = ("none", "weight", "own", "batch")
TICKS = (10, 20, 40, 60, 80, 100, STEPS)


def _measure(seed: int) -> dict[str, float]:
    found = {}
    for name in METHODS:
        runs = [_trained(name, rate, seed) for rate in RATES]
        losses, wrong = min(runs, key=lambda run: final(run[0]))
        found[f"{name} final/0"], found[f"{name} error/0"] = final(losses), wrong
        for tick in TICKS:
            found[f"{name}/{tick}"] = final(losses[:tick], 10)
    return found


def _trained(name: str, rate: float, seed: int) -> tuple[list[float], float]:
    torch.manual_seed(seed)
    weight, _, norm = name.rpartition(" + ")
    weight, norm = (weight, norm) if weight else (name, name)
    model = mlp(norm if norm in ACTIVATIONS else None, DEPTH)
    if weight in WEIGHT_METHODS:
        for layer in [each for each in model if isinstance(each, nn.Linear)][1:-1]:
            normalize_weights_(layer, weight)
    training, test = (vectors(each) for each in digits())
    losses = train(model, draws(training, BATCH, STEPS, seed), model.parameters(), lr=rate)
    return losses, error(model, test)


def _report(found: Found) -> Report:
    from results import table

    plot = curves(found, list(DRAWN), TICKS, ("step", "training loss"), log="y", marks=True)
    rows = [
        [name, powers(found, f"{name} final/0"), powers(found, f"{name} error/0")]
        for name in METHODS
    ]
    return Report(
        f"{DEPTH} hidden layers of 64 with ReLU, {STEPS} steps of SGD with batches of {BATCH}, at "
        f"the better of the rates {' and '.join(map(str, RATES))} by training loss. Weight methods "
        "(`normalize_weights_`) are applied to all but the first and the last layer.",
        plot,
        "Training loss by step, a line a normalization",
        _claims(found),
        table(["normalized", "training loss", "test error, %"], rows),
    )


def _claims(found: Found) -> list[Claim]:
    loss, wrong = (
        {name: geometric(found, f"{name} {kind}/0") for name in METHODS}
        for kind in ("final", "error")
    )
    return [
        Claim(
            "Orthogonal rows come near to what a norm layer does for this network: OWN ends at a "
            f"loss of {loss['own']:.3f} and ONI at {loss['oni']:.3f} (test error "
            f"{wrong['own']:.1f} and {wrong['oni']:.1f} %), batch normalization at "
            f"{loss['batch']:.3f} ({wrong['batch']:.1f} %), none at {loss['none']:.3f} "
            f"({wrong['none']:.1f} %): they keep size and roundness of the activations without "
            "looking at them (Huang et al. 2018, 2020).",
            max(loss["own"], loss["oni"]) < 0.75 * loss["none"]
            and max(wrong["own"], wrong["oni"]) < wrong["none"],
        ),
        Claim(
            f"Length alone gives nothing at this depth: weight normalization ends at "
            f"{loss['weight']:.3f}, where Salimans & Kingma 2016 saw a large gain, with an "
            "initialization by data that is not made here; rows that are centred, too (Huang et "
            f"al. 2017), end at {powers(found, 'centered final/0')}, better, and how much is the "
            "seed's.",
            loss["weight"] > 0.75 * loss["none"] and loss["centered"] < 0.75 * loss["none"],
        ),
        Claim(
            "Standardized and spectrally normalized weights are no substitutes: the loss stays at "
            f"{loss['standardized']:.2f} and {loss['spectral']:.2f}, because the first make "
            "activations grow layer by layer and the second shrink, as do orthogonal rows without "
            f"the factor √2 of OWN and ONI ({loss['orthogonal']:.2f}); before layer normalization, "
            "where Qiao et al. 2019 put them, standardized weights end at "
            f"{powers(found, 'standardized + layer final/0')}, layer normalization by itself at "
            f"{powers(found, 'layer final/0')}.",
            min(loss["standardized"], loss["spectral"]) > 1.5
            and loss["standardized + layer"] < loss["layer"],
        ),
    ]


WEIGHTS = Part("Weights against activations", _measure, _report)
