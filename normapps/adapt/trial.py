"""A trial: adapt a copy of a model, and look at both on the same pictures.

Before and after are looked at in inference mode, as the exported model will be used. That pass
listens, too: it measures the data's statistics under the model's own (mode `fixed`), in two halves,
so that the distance between the halves says how much of a distance is chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.feed import Feed, Part
from ..engine.device import evaluating
from ..errors import InputError
from ..models.outputs import logits_of
from ..norm.convert.sites import find_sites
from ..norm.nesting import detached_copy
from ..norm.population.algebra import distance, merge
from ..norm.population.measuring import measure
from ..norm.population.statistics import Population, population_layers
from .online.base import Online
from .online.guard import Guard
from .run_options import STATISTICS, AdaptOptions

Tick = Callable[[str], object]
"""Called after each batch with what was done."""


@dataclass(frozen=True)
class Look:
    """A model in inference mode on all pictures of a feed.

    Attributes:
        logits: (N, C) float32 on the CPU.
        labels: (N,) int64, None where there are none.
        population: the pictures' statistics under the model's own; None without such layers.
        shift: of each layer, the mean symmetric KL divergence over its channels of those from the
            model's own, in nats, in the order of the model.
        chance: the same between the two halves of the pictures; empty for few pictures.
        seconds: of the network, decoding left out.
    """

    logits: Tensor
    labels: Tensor | None
    population: Population | None
    shift: dict[str, float]
    chance: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What an adaptation did.

    Attributes:
        adapted: the adapted network, plain, where the feed's pictures are.
        before, after: looks at the network as it was and as it is.
        population: what was measured in the pictures; None without running statistics.
        online: logits that were given while adapting, with their labels; None for methods that
            give none.
        seconds: of adapting, decoding left out.
        left_out: pictures of a last batch too small to adapt to.
        advice: a guard's, in a sentence; empty without one.
        stopped: why a guard had the method stop; empty if it did not.
    """

    adapted: nn.Module
    before: Look
    after: Look
    population: Population | None
    online: tuple[Tensor, Tensor | None] | None
    seconds: float
    left_out: int = 0
    advice: str = ""
    stopped: str = ""


def try_method(model: nn.Module, feed: Feed, options: AdaptOptions, tick: Tick) -> Trial:
    """Adapt a copy of a model to pictures, and look at it before and after.

    Args:
        model: in inference mode, on the feed's device and dtype; it stays as it is.
        feed: the pictures.
        options: the method and what it takes.
        tick: told of every batch.

    Raises:
        InputError: a model that the method cannot adapt, or pictures too few for it.
    """
    check_adaptable(model, options)
    options.check_batch(min(len(feed), options.batch_size), f"{feed.pictures.place}: one picture")
    before = look(model, feed, tick, "before")
    run = _by_statistics if options.method in STATISTICS else _by_stream
    with _network_time(feed) as seconds:
        done = run(model, feed, options, tick)
    after = look(done.adapted, feed, tick, "after")
    guard = done.guard
    return Trial(
        done.adapted,
        before,
        after,
        before.population if done.population is None else done.population,
        done.online,
        seconds[0],
        done.left_out,
        guard.advice().reason if guard else "",
        guard.stopped if guard else "",
    )


def check_adaptable(model: nn.Module, options: AdaptOptions) -> None:
    """Find out whether a method has anything to adapt in a model.

    Raises:
        InputError: no norm layers, or none of the kind that the method needs.
    """
    kind = type(model).__name__
    try:
        population_layers(model)
        return
    except InputError:
        sites = find_sites(model)
    if not sites:
        raise InputError(
            f"{kind} has no norm layers, so there is nothing to adapt; take another model"
        )
    if options.method not in ("tent", "eata", "sar", "cotta"):
        kinds = ", ".join(sorted({type(site.module).__name__ for site in sites}))
        raise InputError(
            f"{kind} has no running statistics for --method {options.method} to change, its"
            f" {len(sites)} norm layers are {kinds}; --method tent or sar adapts their scales and"
            " shifts"
        )


def look(model: nn.Module, feed: Feed, tick: Tick, stage: str) -> Look:
    """Run a model in inference mode over all pictures of a feed, and measure their statistics.

    Raises:
        InputError: outputs that are no logits, or activations that are not finite.
    """
    size = look_size(feed)
    count = 2 if len(feed) >= 4 else 1
    parts = [feed.part(number, count, size) for number in range(1, count + 1)]
    answers = _Answers(lambda: tick(stage))
    handle = model.register_forward_hook(answers.hear)
    try:
        with _network_time(feed) as seconds:
            halves = [_measured(model, part, answers) for part in parts]
    finally:
        handle.remove()
    found = [half for half in halves if half is not None]
    whole = merge(found) if found else None
    chance = distances(*found) if len(found) == 2 else {}
    shift = distances(Population.of(model), whole) if whole else {}
    labels = torch.cat(answers.labels) if answers.labels else None
    return Look(torch.cat(answers.logits), labels, whole, shift, chance, seconds[0])


class _Answers:
    """The logits of a model that somebody else runs, and the labels, batch after batch."""

    def __init__(self, tick: Callable[[], object]) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self._tick = tick

    def through(self, part: Part) -> Iterator[Tensor]:
        """Yield a part's images, and keep its labels."""
        for images, labels in part:
            if labels is not None:
                self.labels.append(labels.cpu())
            yield images

    def hear(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep what the model returned."""
        self.logits.append(logits_of(output).float().cpu())
        self._tick()


def look_size(feed: Feed) -> int:
    """Return the pictures a batch with which `look` goes: two batches at least, for halves."""
    return min(feed.batch_size, max(1, -(-len(feed) // 2)))


def distances(a: Population, b: Population) -> dict[str, float]:
    """Return the mean distance over the channels of each layer of both, in the model's order."""
    return {name: float(values.mean()) for name, values in distance(a, b).items()}


def _measured(model: nn.Module, part: Part, answers: _Answers) -> Population | None:
    if _keeps_statistics(model):
        return measure(model, answers.through(part), mode="fixed")
    with evaluating(model):
        for images in answers.through(part):
            model(images)
    return None


def _keeps_statistics(model: nn.Module) -> bool:
    try:
        return bool(population_layers(model))
    except InputError:
        return False


class _Adapted(NamedTuple):
    """What a method left: fields of a `Trial`."""

    adapted: nn.Module
    population: Population | None
    online: tuple[Tensor, Tensor | None] | None = None
    left_out: int = 0
    guard: Guard | None = None


def _by_statistics(model: nn.Module, feed: Feed, options: AdaptOptions, tick: Tick) -> _Adapted:
    from .adabn import adabn_
    from .ema import ema_
    from .prior import prior_

    adapted = detached_copy(model)
    common: dict[str, Any] = {"include": options.layers, "weight": options.weight}
    common["progress"] = lambda _: tick("adapt")
    loader, mode = feed.part(), options.mode_for(min(len(feed), options.batch_size))
    if options.method == "adabn":
        done = adabn_(adapted, loader, mode=mode, **common)
    elif options.method == "prior":
        n = 16.0 if options.prior is None else options.prior
        done = prior_(adapted, loader, n, mode=mode, **common)
    else:
        momentum = 0.1 if options.momentum is None else options.momentum
        cumulative = options.method == "cumulative"
        done = ema_(adapted, loader, momentum, cumulative=cumulative, **common)
    return _Adapted(adapted, done.target)


def _by_stream(model: nn.Module, feed: Feed, options: AdaptOptions, tick: Tick) -> _Adapted:
    method = _stream(model, feed, options)
    least = method.least_batch
    online: Online | Guard = Guard(method, model) if options.guard else method
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    left_out = 0
    for images, found in feed.part():
        if logits and len(images) < least:
            left_out += len(images)
            continue
        logits.append(online(images).float().cpu())
        if found is not None:
            labels.append(found.cpu())
        tick("adapt")
    given_labels = torch.cat(labels) if labels else None
    guard = online if isinstance(online, Guard) else None
    return _Adapted(online.export(), None, (torch.cat(logits), given_labels), left_out, guard)


def _stream(model: nn.Module, feed: Feed, options: AdaptOptions) -> Online:
    """The method on a copy of the model, with what it takes of the options and the pictures."""
    from .methods import METHODS, create_method

    known = METHODS[options.method].options
    if options.layers and "include" not in known:
        raise InputError(f"--layers: --method {options.method} adapts the whole network")
    pictures = feed.pictures.preprocessing
    ours: dict[str, Any] = {"seed": options.seed, "mean": pictures.mean, "std": pictures.std}
    given = {name: value for name, value in ours.items() if name in known}
    if options.layers:
        given["include"] = options.layers
    if options.prior is not None:
        given["prior"] = options.prior
    return create_method(options.method, model, **given)


@contextmanager
def _network_time(feed: Feed) -> Iterator[list[float]]:
    """Measure the seconds of a block without those in which the feed decoded."""
    seconds = [0.0]
    start, decoding = time.perf_counter(), feed.decoding
    yield seconds
    seconds[0] = time.perf_counter() - start - (feed.decoding - decoding)
