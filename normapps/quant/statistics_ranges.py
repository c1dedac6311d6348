"""Ranges of an ONNX file's tensors from batch norm statistics alone: no picture is needed.

A folded batch norm says what its layer gives: mean β and deviation |γ| a channel (Nagel et al.
2019). Those layers' ranges follow in closed form; everything between them (activations, sums,
concatenations, pools, gates, a classifier) is run on Gaussian noise of these moments. Needs the
extra `deploy`; loads no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine.ort import Session, open_session
from ..errors import InputError
from .layers import bounds_of, layers_of, read_model, tensors_of
from .noise_graph import Gaussian, constants_of, gaussians, noisy, readers_of

Range = tuple[float, float]
Progress = Callable[[int, int], object]
"""Called with the batches run and their number."""

_SELECTING = ("MaxPool", "Concat", "Identity", "Flatten")
"""Operators that give nothing beyond the values that they read."""


def statistics_ranges(
    path: str | os.PathLike[str],
    statistics: Mapping[str, tuple[np.ndarray, np.ndarray]],
    shape: Sequence[int],
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    deviations: float = 6.0,
    correlation: float = 0.5,
    runs: int = 4,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Range]:
    """Return the (low, high) of every tensor that `write_int8` rounds, without pictures.

    A layer with statistics gives [min(mean − d·std), max(mean + d·std)] over its channels, cut by
    the ReLU or clip behind it; so does a batch norm that is still in the file, with mean β and
    std |γ|. The others are run on noise: a sum of two activations has the range of the moments
    that its channels have there, all other tensors have their smallest and largest value. Layers
    before the first with statistics read noise in the range of pictures.

    Args:
        path: the float network, of one input.
        statistics: module → mean and std, (C,) each, of what it gives before its activation.
            Modules that the file does not have, or not under their name, are run as they are.
        shape: (N, C, H, W) of a batch of noise.
        mean, std: of the preprocessing, a channel or one for all: pictures lie in
            [(0 − mean) / std, (1 − mean) / std].
        deviations: d.
        correlation: share of the noise's variance that all positions of an image's channel have in
            common, 0 to 1. Activations of pictures are correlated over space; of noise without
            any, what is pooled would hardly leave its mean.
        runs: batches of noise.
        seed: the same ranges come out of the same one, on one machine.
        threads: as `open_session` takes it.
        progress: told of every batch.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the file is missing, no ONNX or does not run on such a batch; no layer of it has
            statistics, or one has them for another number of channels; a number is out of range.
    """
    _check(shape, deviations, correlation, runs)
    model = read_model(path)
    given = gaussians(model, statistics)
    if not given:
        raise InputError(
            f"{os.fspath(path)}: no layer has batch norm statistics; give pictures instead"
        )
    low, high = (_normalized(value, mean, std, shape[1]) for value in (0.0, 1.0))
    pictures = _pictures(shape, low, high, runs, seed)
    wanted = tensors_of(model, [each.name for each in layers_of(model)])
    known = closed_ranges(model, given, deviations)
    known[_input_of(model)] = float(low.min()), float(high.max())
    sums = _sums(model)
    rest = list(dict.fromkeys([*sums, *(each for each in wanted if each not in known)]))
    if rest:
        graph = noisy(model, given, rest, shape, correlation=correlation, seed=seed)
        session = open_session(graph.SerializeToString(), threads=threads)
        seen = _measured(session, pictures, rest, _counter(runs, progress))
        measured = {name: (each.low, each.high) for name, each in seen.items()}
        added = {name: seen[name].gaussian(name) for name in sums}
        known = measured | closed_ranges(model, added | given, deviations) | known
    return {name: known[name] for name in wanted}


def closed_ranges(model: Any, given: Mapping[str, Gaussian], deviations: float) -> dict[str, Range]:
    """Return the range of Gaussian tensors, and of ReLUs, clips, maxima and concatenations of them.

    Args:
        model: a `ModelProto`.
        given: by tensor.
        deviations: how far from its mean a channel goes.
    """
    bounds, readers = bounds_of(model), readers_of(model)
    found: dict[str, Range] = {}
    for node in model.graph.node:
        output = str(node.output[0])
        if output in given:
            behind = [node and bounds.get(node.name) for node in readers.get(output, [])]
            found[output] = _cut(_reach(given[output], deviations), behind)
        elif node.name in bounds and node.input[0] in found:
            found[output] = _cut(found[node.input[0]], [bounds[node.name]])
        elif node.op_type in _SELECTING and all(each in found for each in node.input):
            parts = [found[each] for each in node.input]
            found[output] = min(low for low, _ in parts), max(high for _, high in parts)
    return found


def _reach(gaussian: Gaussian, deviations: float) -> Range:
    reach = deviations * gaussian.std
    return float((gaussian.mean - reach).min()), float((gaussian.mean + reach).max())


def _cut(values: Range, behind: Sequence[Range | None]) -> Range:
    """What of a range the operators behind it let through; all of it where one is no clip."""
    ends = [each for each in behind if each is not None]
    if not ends or len(ends) < len(behind):
        return values
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    low, high = (min(max(each, lowest), highest) for each in values)
    return low, high


def _sums(model: Any) -> list[str]:
    """The sums of two activations: like a Gaussian, they go further than a little noise shows."""
    constants = constants_of(model)
    return [
        str(node.output[0])
        for node in model.graph.node
        if node.op_type == "Add" and constants.keys().isdisjoint(node.input)
    ]


class _Seen:
    """Smallest and largest value of a tensor, and each channel's moments, over equal batches."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._means: list[np.ndarray] = []
        self._vars: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Count (N, C, *S), or (N, T, C)."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        channels = values.astype(np.float64)
        others = tuple(each for each in range(values.ndim) if each != _channel_axis(values))
        self._means.append(channels.mean(others))
        self._vars.append(channels.var(others))

    def gaussian(self, tensor: str) -> Gaussian:
        """Return the pooled moments: of one batch after the other, and between them."""
        means = np.stack(self._means)
        var = np.stack(self._vars).mean(0) + means.var(0)
        return Gaussian(tensor, means.mean(0), np.sqrt(var), 1)


def _channel_axis(values: np.ndarray) -> int:
    return values.ndim - 1 if values.ndim == 3 else min(1, values.ndim - 1)


def _measured(
    session: Session,
    batches: Iterator[np.ndarray],
    tensors: Sequence[str],
    count: Callable[[], object],
) -> dict[str, _Seen]:
    """What each tensor's values are over all batches."""
    found = {name: _Seen() for name in tensors}
    for batch in batches:
        for name, values in zip(tensors, session.run(batch, tensors), strict=True):
            if not np.isfinite(values).all():
                raise InputError(
                    f"tensor '{name}': noise of the statistics gives nan or infinity; give"
                    " pictures instead"
                )
            found[name].add(values)
        count()
    return found


def _pictures(
    shape: Sequence[int], low: np.ndarray, high: np.ndarray, runs: int, seed: int
) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(seed)
    for _ in range(runs):
        yield draw.standard_normal(tuple(shape), np.float32).clip(low, high)


def _normalized(
    value: float, mean: Sequence[float], std: Sequence[float], channels: int
) -> np.ndarray:
    """What a preprocessing makes of a picture's value, (C, 1, 1) float32."""
    if any(len(each) not in (1, channels) for each in (mean, std)):
        raise InputError(
            f"mean {tuple(mean)}, std {tuple(std)}: give one number, or one for each of"
            f" {channels} channels"
        )
    if min(std) <= 0:
        raise InputError(f"std {tuple(std)}: must be above 0")
    whole = (value - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.broadcast_to(whole, (channels,)).reshape(-1, 1, 1)


def _input_of(model: Any) -> str:
    constants = {each.name for each in model.graph.initializer}
    return next(str(each.name) for each in model.graph.input if each.name not in constants)


def _counter(total: int, progress: Progress | None) -> Callable[[], object]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return count


def _check(shape: Sequence[int], deviations: float, correlation: float, runs: int) -> None:
    if len(shape) != 4 or min(shape) < 1:
        raise InputError(f"shape {tuple(shape)}: must be (N, C, H, W), all at least 1")
    for name, value in (("deviations", deviations), ("runs", runs)):
        if not value > 0:
            raise InputError(f"{name} {value}: must be above 0")
    if not 0 <= correlation <= 1:
        raise InputError(f"correlation {correlation}: must be from 0 to 1")
