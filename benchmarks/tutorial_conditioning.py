"""Tutorial: how round the inputs of layers are, and what normalized inputs do to the first one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from tutorial_common import (
    Claim,
    Found,
    Part,
    Report,
    curves,
    digits,
    geometric,
    mlp,
    powers,
    short,
    vectors,
)

from normapps.analysis.conditioning import PERCENT, conditioning, spectrum
from normapps.norm.inputs import InputNorm

DEPTH = 16
NETWORKS = {"none": None, "layer": "layer", "batch": "batch", "iternorm": "iternorm"}
OPTIONS = {"iternorm": {"group_size": 16}}
KAPPA = PERCENT.index(50)
MOST = 1e16
"""The largest condition number that float64 tells from infinity."""


def _measure_layers(seed: int) -> dict[str, float]:
    x, labels = vectors(digits()[0])
    batch = [(x[:1024], labels[:1024])]
    found = {}
    for name, norm in NETWORKS.items():
        torch.manual_seed(seed)
        rows = conditioning(mlp(norm, DEPTH, **OPTIONS.get(name, {})), batch)
        for number, row in enumerate(rows[1:DEPTH], 2):
            kappa = math.inf if row.input is None else row.input.kappa[KAPPA]
            found[f"{name}/{number}"] = min(kappa, MOST)
    return found


def _report_layers(found: Found) -> Report:
    from results import table

    layers = range(2, DEPTH + 1)
    plot = curves(
        found,
        list(NETWORKS),
        layers,
        ("layer", "κ₅₀ of what it reads"),
        log="y",
        marks=True,
    )
    rows = [
        [name, *(powers(found, f"{name}/{place}") for place in (2, 8, DEPTH))] for name in NETWORKS
    ]
    return Report(
        f"A network of {DEPTH} hidden layers of 64 with ReLU and He's initialization, before any "
        "training, on 1024 digits; the norm stands between linear map and ReLU. κ₅₀ = λ₁/λ₃₂ of "
        "E[xxᵀ], of what a layer reads (`normapps.analysis.conditioning`); geometric means.",
        plot,
        "Condition number of what each layer reads, a line a norm",
        _layer_claims(found),
        table(["κ₅₀ at", "layer 2", "layer 8", f"layer {DEPTH}"], rows),
    )


def _layer_claims(found: Found) -> list[Claim]:
    first, deep = ({name: found[f"log {name}/{at}"] for name in NETWORKS} for at in (2, DEPTH))
    mean = {name: short(10**value.mean) for name, value in deep.items()}
    return [
        Claim(
            "Without normalization every layer reads less round inputs than the one before it: κ₅₀ "
            f"goes from {short(10 ** first['none'].mean)} at layer 2 to {mean['none']} at layer "
            f"{DEPTH}, although He's initialization keeps the activations' size.",
            deep["none"].low > first["none"].high,
        ),
        Claim(
            f"With batch normalization it is {mean['batch']} and does not grow with depth "
            "(Huang et al. 2020; Daneshmand et al. 2020 prove the like of the rank): different "
            "pictures are kept from pointing the same way; whitening groups of 16 channels makes "
            f"it {mean['iternorm']}.",
            max(deep["batch"].mean, deep["iternorm"].mean) < first["batch"].mean + 0.3,
        ),
        Claim(
            "Layer normalization makes all activations equally long and still leaves "
            f"{mean['layer']}: it holds the largest eigenvalue, which Huang et al. 2020 keep apart "
            "from the condition number, and not the small ones.",
            deep["layer"].low > deep["batch"].high,
        ),
    ]


CONDITIONING = Part("Conditioning of a deep network", _measure_layers, _report_layers)

METHODS = ("none", "center", "standardize", "zca")
STEPS = (1, 3, 10, 30, 100, 300)


def _measure_inputs(seed: int) -> dict[str, float]:
    """A linear classifier of raw pixels by gradient descent on all pictures, at its best rate."""
    (images, labels), _ = digits()
    picked = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:900]
    raw, labels = images.flatten(1)[picked], labels[picked]
    found = {}
    for method in METHODS:
        x = raw
        if method != "none":
            x = InputNorm(64, method, eps=1e-3).fit([raw])(raw)
        rows = x.double()
        shape = spectrum(rows.T @ rows / len(rows), len(rows), 1e-7)
        for percent, value in zip(PERCENT, shape.kappa, strict=True):
            found[f"{method} κ/{percent}"] = min(value, MOST)
        rates = [factor / shape.largest for factor in (2, 4, 8)]
        runs = [_descended(x, labels, rate) for rate in rates]
        best = min(runs, key=lambda run: run[STEPS[-1] - 1])
        for step in STEPS:
            found[f"{method}/{step}"] = best[step - 1]
    return found


def _descended(x: torch.Tensor, labels: torch.Tensor, rate: float) -> list[float]:
    model = nn.Linear(64, 10)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    losses = []
    for _ in range(STEPS[-1]):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _report_inputs(found: Found) -> Report:
    from results import table

    plot = curves(found, list(METHODS), STEPS, ("step", "training loss"), log="xy", marks=True)
    rows = [
        [
            method,
            *(powers(found, f"{method} κ/{percent}") for percent in (50, 80)),
            powers(found, f"{method}/{STEPS[-1]}"),
        ]
        for method in METHODS
    ]
    return Report(
        "A linear classifier of the 64 pixels of 900 digits, by gradient descent on all of them, "
        "from zero, at the best of the rates 2/λ₁, 4/λ₁ and 8/λ₁; inputs by "
        "`normapps.norm.inputs.InputNorm` with eps 1e-3. `pca` is `zca` and a rotation, which "
        "gradient descent from zero does not see.",
        plot,
        "Training loss of a linear classifier by step, a line a normalization of its inputs",
        _input_claims(found),
        table(["inputs", "κ₅₀", "κ₈₀", f"loss after {STEPS[-1]} steps"], rows),
    )


def _input_claims(found: Found) -> list[Claim]:
    last = {method: found[f"{method}/{STEPS[-1]}"] for method in METHODS}
    early = {method: found[f"{method}/10"] for method in METHODS}
    kappa = {method: short(geometric(found, f"{method} κ/50")) for method in METHODS}
    return [
        Claim(
            f"Centring alone takes κ₅₀ from {kappa['none']} to {kappa['center']} and the loss "
            f"after {STEPS[-1]} steps from {last['none'].mean:.2f} to {last['center'].mean:.3f}: "
            "the mean was the eigenvector of the largest eigenvalue, which bounds the steps along "
            "all others (LeCun et al. 1998, sec. 4.3).",
            last["center"].high < last["none"].low,
        ),
        Claim(
            f"Whitened, κ₅₀ is {kappa['zca']}, and 10 steps reach {early['zca'].mean:.2f}, which "
            f"the raw pixels do not in {STEPS[-1]}; the loss in the end is "
            f"{last['zca'].mean:.3f}.",
            early["zca"].high < last["none"].low,
        ),
        Claim(
            "Standardizing, which the paper recommends after centring, brings nothing here "
            f"({last['standardize'].mean:.3f} after {STEPS[-1]} steps) although κ₈₀ falls to "
            f"{short(geometric(found, 'standardize κ/80'))}: pixels share one unit already, and "
            "those at the border, which hardly vary, are made as loud as the others.",
            abs(last["standardize"].mean - last["center"].mean) < last["center"].margin,
        ),
    ]


INPUTS = Part("Normalized inputs", _measure_inputs, _report_inputs)
