"""Tutorial: scale-invariant weights, and the equilibrium that their decay ends in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn
from tutorial_common import (
    Claim,
    Data,
    Found,
    Part,
    Report,
    curves,
    digits,
    draws,
    mlp,
    powers,
    spread,
    train,
    vectors,
)

from normapps.analysis.invariance import equilibrium, scale_invariance
from normapps.measure.plots import Lines

RATE, DECAY = 0.4, 1e-2
SCALES = {"1/16 of the weights": 1 / 16, "the weights": 1.0, "4 times the weights": 4.0}
NOISE = 0.3
WINDOW, STEPS = 50, 1000
ENDS = tuple(range(WINDOW, STEPS + 1, WINDOW))
COMPARED = (None, "batch", "layer", "iternorm")


def _measure(seed: int) -> dict[str, float]:
    data = vectors(digits()[0])
    found = {}
    for norm in COMPARED:
        torch.manual_seed(seed)
        batch = data[0][:256], data[1][:256]
        rows = scale_invariance(mlp(norm, 3), batch, few=256)[:3]
        found[f"{norm} change/0"] = max(row.change for row in rows)
        found[f"{norm} ratio/0"] = fmean(row.ratio for row in rows)
        found[f"{norm} cosine/0"] = max(row.cosine for row in rows)
    for name, scale in SCALES.items():
        angles, norms = _turned(scale, seed)
        for end in ENDS:
            found[f"{name}/{end}"] = fmean(angles[end - WINDOW : end])
        found[f"{name} norm/start"], found[f"{name} norm/end"] = norms[0], norms[-1]
    return found


def _turned(scale: float, seed: int) -> tuple[list[float], list[float]]:
    """The angles that the second layer's weight turns by in each step, and its norms."""
    torch.manual_seed(seed)
    model = mlp("batch", 3)
    weights = [each.weight for each in model if isinstance(each, nn.Linear)][:-1]
    with torch.no_grad():
        for each in weights:
            each.mul_(scale)
    watched = _Turning(weights[1])
    others = [each for each in model.parameters() if not any(each is w for w in weights)]
    groups = [{"params": weights, "weight_decay": DECAY}, {"params": others}]
    batches = _mislabelled(draws(vectors(digits()[0]), 64, STEPS, seed), seed)
    train(model, batches, groups, after=watched.look, lr=RATE)
    return watched.angles, watched.norms


def _mislabelled(batches: Iterator[Data], seed: int) -> Iterator[Data]:
    """Batches in which a share of the labels is drawn anew, so that gradients do not vanish."""
    generator = torch.Generator().manual_seed(seed)
    for x, labels in batches:
        is_wrong = torch.rand(len(labels), generator=generator) < NOISE
        drawn = torch.randint(10, (len(labels),), generator=generator)
        yield x, torch.where(is_wrong, drawn, labels)


class _Turning:
    """Looks at a weight after every step."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight, self.before = weight, weight.detach().double().clone()
        self.angles: list[float] = []
        self.norms = [float(self.before.norm())]

    def look(self, step: int) -> None:
        """Note the angle to the weight before, and the norm."""
        now = self.weight.detach().double().clone()
        self.angles.append(_angle(self.before, now))
        self.norms.append(float(now.norm()))
        self.before = now


def _angle(one: Tensor, other: Tensor) -> float:
    """2·atan2(‖a−b‖, ‖a+b‖) of the unit vectors, which small angles survive."""
    a, b = one / one.norm(), other / other.norm()
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))


def _report(found: Found) -> Report:
    from results import table

    line = equilibrium(RATE, DECAY)
    drawn = curves(found, list(SCALES), ENDS, ("step", "angle a step, radians"), log="y")
    series = {**drawn.series, "√(2ηλ)": [line] * len(ENDS)}
    plot = Lines(drawn.x, series, drawn.axes, log="y", spread=drawn.spread)
    rows = [
        [
            str(norm or "none"),
            *(powers(found, f"{norm} {key}/0") for key in ("change", "cosine")),
            spread(found[f"{norm} ratio/0"], 5),
        ]
        for norm in COMPARED
    ]
    turned = [
        [
            name,
            spread(found[f"{name} norm/start"]),
            spread(found[f"{name} norm/end"]),
            spread(found[f"{name}/{ENDS[0]}"], 4),
            spread(found[f"{name}/{ENDS[-1]}"], 4),
        ]
        for name in SCALES
    ]
    header = ["second layer", "‖w‖ at first", "in the end", "angle at first", "in the end"]
    both = table(["norm", "change", "cosine", "ratio"], rows) + "\n\n" + table(header, turned)
    return Report(
        "Networks of three hidden layers. First each hidden weight is multiplied by 3 "
        "(`normapps.analysis.invariance`): relative change of the logits, largest cosine of weight "
        "and gradient, and ‖g(3w)‖·3/‖g(w)‖. Then the one with batch normalization is trained "
        f"by SGD with η = {RATE}, λ = {DECAY} on the hidden weights and no momentum, from weights "
        f"of three sizes; {100 * NOISE:.0f} % of the labels are drawn anew at every step, so that "
        "the gradients keep their size when all is learnt, as the theory wants. The plot: the "
        f"angle that the second layer's weight turns by a step, mean of {WINDOW} steps.",
        plot,
        "Angle between successive weights by step, a line an initial size, and √(2ηλ)",
        _claims(found),
        both,
    )


def _claims(found: Found) -> list[Claim]:
    line = equilibrium(RATE, DECAY)
    changes = [found[f"{norm} change/0"].mean for norm in COMPARED]
    ratios = [found[f"{norm} ratio/0"].mean for norm in COMPARED]
    first = [found[f"{name}/{ENDS[0]}"].mean for name in SCALES]
    last = [found[f"{name}/{ENDS[-1]}"].mean for name in SCALES]
    return [
        Claim(
            "Behind each of the three norms the logits change by less than "
            f"{_above(max(changes[1:]))} (without a norm by {changes[0]:.1f}), and the gradient, "
            "orthogonal to the weight, becomes 3 times less, to a relative "
            f"{_above(_furthest(ratios[1:]))}: a step is one by η/‖w‖² on the direction (van "
            "Laarhoven 2017; Arora et al. 2019).",
            max(changes[1:]) < 1e-3 < changes[0],
        ),
        Claim(
            "From first angles of " + ", ".join(f"{each:.2g}" for each in first) + " radians "
            "all three sizes come within "
            f"{math.ceil(100 * _furthest([each / line for each in last]))} % of √(2ηλ) = "
            f"{line:.4f} (Wan et al. 2021): in the end the size that one began with does not "
            "count.",
            _furthest([each / line for each in last]) < 0.15,
        ),
        Claim(
            "How long that takes does depend on it: too small a weight is thrown out by its own "
            "first steps, too large a one has to wait for the decay, whose time is 1/(ηλ) = "
            f"{1 / (RATE * DECAY):.0f} steps, and is the one still short of the line at the end.",
            first[-1] < first[1] < first[0] and last[-1] == min(last),
        ),
    ]


def _furthest(ratios: Sequence[float]) -> float:
    return max(abs(each - 1) for each in ratios)


def _above(value: float) -> str:
    """A bound in one figure."""
    power = 10.0 ** math.floor(math.log10(value))
    return f"{math.ceil(value / power) * power:.0e}"


INVARIANCE = Part("Scale invariance and its equilibrium", _measure, _report)
