"""Mixed precision: which layers lose most in int8, and how few of them must stay float.

Every layer is tried alone, as HAWQ and ZeroQ (Cai et al. 2020) do, with what onnxruntime really
computes instead of a bound; then the worst ones stay float until the loss is small enough. Needs
the extra `deploy`; loads no torch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engine.ort import Session, open_session
from ..errors import InputError
from .int8 import write_int8
from .layers import Node, quantizable

Progress = Callable[[int, int], object]
"""Called with the networks tried and their number, which for a search is the most it may take."""


@dataclass(frozen=True)
class Sensitivity:
    """What one layer in int8 costs.

    Attributes:
        node: the layer.
        error: ‖int8 − float‖ / ‖float‖ of the network's first output, over all images.
        agreement: share of the answers (largest of axis 1) that stay the same.
    """

    node: Node
    error: float
    agreement: float


@dataclass(frozen=True)
class Choice:
    """Which layers stay float.

    Attributes:
        exclude: names of nodes, the most sensitive first, as `write_int8` takes them.
        loss: measured with all other layers in int8; 0 where all stay float.
        tried: (layers in float, loss) of every network that was measured, in order.
    """

    exclude: tuple[str, ...]
    loss: float
    tried: tuple[tuple[int, float], ...]


def sensitivity(
    path: str | os.PathLike[str],
    ranges: Mapping[str, tuple[float, float]],
    batches: Sequence[np.ndarray],
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Sensitivity, ...]:
    """Try each layer alone in int8, and return them with the one that costs most first.

    Takes as many networks as there are layers, each written, opened and run over all batches.

    Args:
        path: the float network.
        ranges: of all `activation_tensors`.
        batches: (N, C, H, W) float32 as the network takes them; some dozens of images suffice.
        per_channel, reduce_range: as `write_int8` takes them.
        threads: as `open_session` takes it.
        progress: told of every network.

    Raises:
        NormappsError: the extra is not installed.
        InputError: the file is missing, no ONNX, has no layer that could be int8, or does not run
            on the batches; there are none, or a range is missing.
    """
    layers = quantizable(path)
    if not layers:
        raise InputError(f"{os.fspath(path)}: no layer could be int8; nothing to be sensitive")
    names = [each.name for each in layers]
    with _Trials(path, ranges, batches, per_channel, reduce_range, threads) as trials:
        found = []
        for place, layer in enumerate(layers):
            output = trials.outputs([each for each in names if each != layer.name])
            found.append(Sensitivity(layer, trials.error(output), trials.agreement(output)))
            if progress is not None:
                progress(place + 1, len(layers))
    return tuple(sorted(found, key=lambda each: -each.error))


def choose_float(
    path: str | os.PathLike[str],
    ranges: Mapping[str, tuple[float, float]],
    batches: Sequence[np.ndarray],
    order: Sequence[Sensitivity],
    *,
    max_drop: float,
    labels: np.ndarray | None = None,
    per_channel: bool = True,
    reduce_range: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Leave the most sensitive layers float, as few as make the loss at most `max_drop`.

    The loss is the share of answers that change; with labels, the accuracy that is lost. All in
    int8 is tried first, then 1, 2, 4, … layers in float, and then the interval in which the loss
    falls below the limit is halved: about 2·log₂ of the layers that stay float, not one network a
    layer. Where the loss does not fall with every layer, another choice may be smaller; the one
    that is returned was measured.

    Args:
        path, ranges, batches, per_channel, reduce_range, threads: as of `sensitivity`, on other
            images than those which the result is judged with.
        order: what `sensitivity` returned.
        max_drop: 0 to 1.
        labels: (images,) the right class of each.
        progress: told of every network.

    Returns:
        All layers, with a loss of 0, where no mixture is good enough: then there is no int8.

    Raises:
        NormappsError: the extra is not installed.
        InputError: as `sensitivity`; or the limit is out of range, `order` is not of this file, or
            the labels are not one an image.
    """
    if not 0 <= max_drop <= 1:
        raise InputError(f"max_drop {max_drop}: must be from 0 to 1")
    names = [each.node.name for each in order]
    if set(names) != {each.name for each in quantizable(path)}:
        raise InputError(f"{os.fspath(path)}: the order is of another network; measure this one's")
    with _Trials(path, ranges, batches, per_channel, reduce_range, threads) as trials:
        trials.check(labels)
        search = _Search(lambda count: trials.loss(names[:count], labels), len(names), progress)
        count = search.smallest(max_drop)
    return Choice(tuple(names[:count]), search.losses.get(count, 0.0), tuple(search.losses.items()))


class _Trials:
    """Int8 versions of one network on the same images, with what the float one makes of them."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        ranges: Mapping[str, tuple[float, float]],
        batches: Sequence[np.ndarray],
        per_channel: bool,
        reduce_range: bool,
        threads: int | None,
    ) -> None:
        if not sum(len(each) for each in batches):
            raise InputError(f"{os.fspath(path)}: no images to compare on; give at least one")
        self._path, self._ranges, self._threads = path, ranges, threads
        self._batches = [each for each in batches if len(each)]
        self._per_channel, self._reduce_range = per_channel, reduce_range
        self._wanted = self._run(open_session(path, threads=threads))

    def __enter__(self) -> _Trials:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    def outputs(self, exclude: Collection[str]) -> np.ndarray:
        """What the network gives with all but some layers (node names) in int8."""
        file = Path(self._folder.name) / "trial.onnx"
        write_int8(
            self._path,
            file,
            self._ranges,
            per_channel=self._per_channel,
            exclude=exclude,
            reduce_range=self._reduce_range,
            overwrite=True,
        )
        return self._run(open_session(file, threads=self._threads))

    def error(self, found: np.ndarray) -> float:
        size = float(np.linalg.norm(self._wanted))
        apart = float(np.linalg.norm(found - self._wanted))
        return apart / size if size else apart

    def agreement(self, found: np.ndarray) -> float:
        return float((found.argmax(1) == self._wanted.argmax(1)).mean())

    def loss(self, exclude: Collection[str], labels: np.ndarray | None) -> float:
        found = self.outputs(exclude)
        if labels is None:
            return 1 - self.agreement(found)
        before, after = ((each.argmax(1) == labels).mean() for each in (self._wanted, found))
        return float(before - after)

    def check(self, labels: np.ndarray | None) -> None:
        if labels is not None and labels.shape != (wanted := self._wanted.argmax(1).shape):
            raise InputError(f"labels of {labels.shape}: must be {wanted}, one an answer")

    def _run(self, session: Session) -> np.ndarray:
        """The first output for all images, (N, C, *S) float64."""
        parts = [session.run(batch)[0] for batch in self._batches]
        whole = np.concatenate(parts).astype(np.float64)
        if whole.ndim < 2:
            raise InputError(
                f"{os.fspath(self._path)}: gives {whole.shape}, no answers to compare; a network of"
                " (N, C, …) is needed"
            )
        return whole


class _Search:
    """Looks for the smallest count whose loss is within a limit, and keeps what it measured."""

    def __init__(self, loss: Callable[[int], float], total: int, progress: Progress | None) -> None:
        self._loss, self._total, self._progress = loss, total, progress
        self.losses: dict[int, float] = {}

    def smallest(self, limit: float) -> int:
        """Return it, at most `total`, at which nothing is lost and nothing is measured."""
        below, count = -1, 0  # `below` is known to lose too much
        while count < self._total and self._measured(count) > limit:
            below, count = count, max(1, 2 * count)
        count = min(count, self._total)
        while count - below > 1:
            middle = (below + count) // 2
            if self._measured(middle) > limit:
                below = middle
            else:
                count = middle
        return count

    def _measured(self, count: int) -> float:
        self.losses[count] = self._loss(count)
        if self._progress is not None:
            done = len(self.losses)
            self._progress(done, max(done, 1 + 2 * self._total.bit_length()))
        return self.losses[count]
