"""What the parts of tutorial.py share: the pictures, small networks, training, what a part says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.measure.interval import Estimate, estimate
from normapps.measure.plots import Lines, Plot
from normapps.norm import create_norm

TRAINING = 1280
LEAST = 1e-9

Data = tuple[Tensor, Tensor]
"""Pictures or vectors, and their classes."""

Found = Mapping[str, Estimate]
"""What the seeds found, by the name of the figure."""


@dataclass(frozen=True)
class Claim:
    """A sentence of a part, with the figures in it, and whether they bear it out."""

    text: str
    holds: bool = True


@dataclass(frozen=True)
class Report:
    """What a part shows: a paragraph on what was done, a plot with its caption, claims, a table."""

    setting: str
    plot: Plot
    caption: str
    claims: Sequence[Claim]
    table: str

    @property
    def is_borne_out(self) -> bool:
        """Whether the figures bear out all that is said."""
        return all(each.holds for each in self.claims)


@dataclass(frozen=True)
class Part:
    """A section of the tutorial.

    Attributes:
        title: of the section.
        measure: the figures of a seed, by name.
        report: what is said of those of all seeds.
    """

    title: str
    measure: Callable[[int], dict[str, float]]
    report: Callable[[Found], Report]


@cache
def digits() -> tuple[Data, Data]:
    """scikit-learn's digits (N, 1, 8, 8) in [0, 1]: 1280 to train on, 517 to test."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).float().div(16).unsqueeze(1)[order]
    labels = torch.from_numpy(data.target)[order]
    return (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:])


def vectors(data: Data) -> Data:
    """Pictures as vectors of their 64 pixels, centred by the mean of the training pictures."""
    return (data[0] - digits()[0][0].mean(0)).flatten(1), data[1]


def mlp(norm: str | None, depth: int, width: int = 64, **options: Any) -> nn.Sequential:
    """`depth` hidden layers of linear, norm and ReLU, He's initialization, then the classifier."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(64 if not layers else width, width, bias=norm is None)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers += [linear, *_norm(norm, width, "any", options), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(norm: str | None, widths: Sequence[int], **options: Any) -> nn.Sequential:
    """Convolution 3×3, norm and ReLU a width, stride 2 from the second on, then the classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((1, *widths), widths, strict=False):
        conv = nn.Conv2d(inputs, outputs, 3, 2 if layers else 1, padding=1, bias=norm is None)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        act = nn.Identity() if norm == "frn" else nn.ReLU()  # frn cuts off by itself
        layers += [conv, *_norm(norm, outputs, "2d", options), act]
    places = (16 // 2 ** len(widths)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(places * widths[-1], 10))


def _norm(name: str | None, width: int, layout: str, options: dict[str, Any]) -> list[nn.Module]:
    return [] if name is None else [create_norm(name, width, layout=layout, **options)]


def draws(data: Data, batch: int, steps: int, seed: int) -> Iterator[Data]:
    """Batches of different pictures, drawn by a seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        picked = torch.randperm(len(data[0]), generator=generator)[:batch]
        yield data[0][picked], data[1][picked]


def train(
    model: nn.Module,
    batches: Iterator[Data],
    groups: Any,
    *,
    before: Callable[[], object] | None = None,
    after: Callable[[int], object] | None = None,
    **sgd: float,
) -> list[float]:
    """Train by SGD; return the loss of every batch, up to the first that is not finite.

    Args:
        before: called before each of the optimizer's steps, to change gradients.
        after: called with the number of each step, after it.
    """
    optimizer = torch.optim.SGD(groups, **sgd)
    losses: list[float] = []
    for step, (x, labels) in enumerate(batches):
        loss = F.cross_entropy(model(x), labels)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        if before is not None:
            before()
        optimizer.step()
        if after is not None:
            after(step)
    return losses


def final(losses: Sequence[float], last: int = 20) -> float:
    """Mean of the last losses; that of guessing, log 10, where it is more or not finite."""
    value = fmean(losses[-last:])
    return min(value, math.log(10)) if math.isfinite(value) else math.log(10)


def error(model: nn.Module, data: Data) -> float:
    """Per cent of wrong answers in inference; a network that overflowed is wrong nine times."""
    return judged(model, data)[0]


@torch.no_grad()
def judged(model: nn.Module, data: Data) -> tuple[float, float]:
    """Per cent of wrong answers in inference, and the loss."""
    logits = model.eval()(data[0])
    model.train()
    if not bool(torch.isfinite(logits).all()):
        return 90.0, math.log(10)
    wrong = 100 * float((logits.argmax(1) != data[1]).double().mean())
    return wrong, float(F.cross_entropy(logits, data[1]))


def summarized(seeds: Sequence[Mapping[str, float]]) -> Found:
    """Mean and 95 % interval of each figure, of one seed the value alone; "log NAME": of its log10.

    A figure of 0 counts as `LEAST` in its logarithm.
    """
    found = {}
    for name in seeds[0]:
        values = [each[name] for each in seeds]
        found[name] = _estimate(values)
        found[f"log {name}"] = _estimate([math.log10(max(each, LEAST)) for each in values])
    return found


def _estimate(values: Sequence[float]) -> Estimate:
    return estimate(values) if len(values) > 1 else Estimate(values[0], values[0], values[0], 1)


def curves(
    found: Found, names: Sequence[str], keys: Sequence[Any], axes: tuple[str, str], **options: Any
) -> Lines:
    """Lines through the figures "name/key" with their intervals, geometric ones on a log axis.

    Args:
        keys: numbers, the places on the x axis.
        options: of `Lines`.
    """
    is_log = "y" in options.get("log", "")

    def drawn(value: float) -> float:
        return 10**value if is_log else value

    prefix = "log " if is_log else ""
    rows = {name: [found[f"{prefix}{name}/{key}"] for key in keys] for name in names}
    return Lines(
        [float(key) for key in keys],
        {name: [drawn(each.mean) for each in row] for name, row in rows.items()},
        axes,
        spread={
            name: ([drawn(each.low) for each in row], [drawn(each.high) for each in row])
            for name, row in rows.items()
        },
        **options,
    )


def spread(value: Estimate, digits: int = 2) -> str:
    """A mean ± half its interval."""
    return f"{value.mean:.{digits}f} ± {value.margin:.{digits}f}"


def powers(found: Found, name: str) -> str:
    """A figure's geometric mean and interval."""
    value = found[f"log {name}"]
    return f"{short(10**value.mean)} ({short(10**value.low)}–{short(10**value.high)})"


def geometric(found: Found, name: str) -> float:
    """A figure's geometric mean."""
    return float(10 ** found[f"log {name}"].mean)


def short(value: float) -> str:
    """Two figures, without an exponent up to a million."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if 10 <= rounded < 1e6 else f"{rounded:g}"
