"""Tutorial: the learning rates that scale-invariant weights forgive."""

from __future__ import annotations

from collections.abc import Sequence

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

from normapps.norm.weight import normalize_weights_

FIXED = 0.1
"""Learning rate of all but the hidden weights."""

RATES = tuple(10 ** (half / 2) for half in range(-6, 4))
SERIES = ("none", "weight", "batch", "batch, all rates")
TRIED = 150


def _measure(seed: int) -> dict[str, float]:
    found = {}
    for name in SERIES:
        for rate in RATES:
            loss, wrong = _rated(name, rate, seed)
            found[f"{name}/{rate:.3g}"], found[f"{name} error/{rate:.3g}"] = loss, wrong
    return found


def _rated(name: str, rate: float, seed: int) -> tuple[float, float]:
    """Loss and test error after training with a rate for the hidden weights."""
    torch.manual_seed(seed)
    model = mlp("batch" if "batch" in name else None, 4)
    hidden = [each for each in model if isinstance(each, nn.Linear)][:-1]
    if name == "weight":
        for layer in hidden:
            normalize_weights_(layer, "weight")
    directions = [_direction(layer) for layer in hidden]
    others = [each for each in model.parameters() if not any(each is w for w in directions)]
    fixed = rate if "all" in name else FIXED
    groups = [{"params": directions, "lr": rate}, {"params": others, "lr": fixed}]
    training, test = (vectors(each) for each in digits())
    losses = train(model, draws(training, 64, TRIED, seed), groups, lr=FIXED)
    return final(losses), error(model, test)


def _direction(layer: nn.Linear) -> nn.Parameter:
    """The weight, or of a parametrized one the parameter that is only a direction."""
    own = [each for each in layer.parameters() if each.shape == layer.weight.shape]
    return own[-1]


def _report(found: Found) -> Report:
    from results import table

    keys = [f"{rate:.3g}" for rate in RATES]
    axes = ("learning rate of the hidden weights", "training loss")
    plot = curves(found, SERIES, keys, axes, log="xy", marks=True)
    rows = [[key, *(powers(found, f"{name}/{key}") for name in SERIES)] for key in keys]
    return Report(
        f"Four hidden layers, {TRIED} steps of SGD with batches of 64. The learning rate of the "
        f"hidden weights varies; biases, γ, β and the classifier keep {FIXED}, except in the "
        "last series, where all vary together. `weight` is weight normalization, whose direction "
        "is scale-invariant and whose length is not varied.",
        plot,
        "Training loss by learning rate, a line a normalization",
        _claims(found, keys),
        table(["rate", *SERIES], rows),
    )


def _claims(found: Found, keys: Sequence[str]) -> list[Claim]:
    loss = {name: [geometric(found, f"{name}/{key}") for key in keys] for name in SERIES}
    best = {name: min(values) for name, values in loss.items()}
    high = keys.index("1")
    return [
        Claim(
            f"From rate 1 to {keys[-1]} the loss with batch normalization stays between "
            f"{min(loss['batch'][high:]):.3f} and {max(loss['batch'][high:]):.3f}, and with weight "
            f"normalization at most {max(loss['weight'][high:]):.3f}; without either it is "
            f"{loss['none'][high]:.3f} at rate 1 and that of guessing from 10 on: a large step "
            "makes a scale-invariant weight long, and the effective rate small (Arora et al. "
            "2019).",
            max(loss["batch"][high:]) < 0.2 and loss["none"][keys.index("10")] > 2,
        ),
        Claim(
            "The tuning is the scale-invariant weights' alone, as the theorem says: where the rate "
            "of everything varies, batch normalization does not save a rate of 10, either "
            f"(loss {loss['batch, all rates'][keys.index('10')]:.2f}).",
            loss["batch, all rates"][keys.index("10")] > 1,
        ),
        Claim(
            "It works in one direction: at 0.001 the weights hardly grow, nothing makes the step "
            f"larger, and the loss is {loss['batch'][0]:.2f} against {loss['none'][0]:.2f}; and at "
            f"the best rate for each, the plain network is the best here ({best['none']:.3f} "
            f"against {best['batch']:.3f}): tolerance, not speed, is what four layers gain.",
            loss["batch"][0] > 5 * best["batch"] and best["none"] < best["batch"],
        ),
    ]


RATE_TUNING = Part("The learning rate that tunes itself", _measure, _report)
