"""Quantization-aware finetuning: a network learns to answer as before while it is rounded.

Jacob et al. 2018, section 3, on a network whose batch norms are folded already, and with the
float network as teacher (Mishra & Marr 2018) in the place of labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.loop import Loop
from ..errors import InputError
from ..norm.nesting import detached_copy
from ..norm.population.listening import inference
from ..norm.undo import Undo
from .fake import Ranges, input_ranges
from .finetune_options import QatOptions
from .qat import Feed, QatTrainer

_MEASURED = 512
"""Inputs on which ranges that are not given are measured."""


class Finetuning(Undo):
    """What `finetune_` did; called, it takes the training back.

    Attributes:
        ranges: of the input of each rounded layer, as `fake_quantize_` and the ONNX writer take
            them; empty where weights alone are rounded.
        losses: of each step of this call.
        is_finished: whether all steps are taken; not where `stop_after` ended them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ranges: dict[str, tuple[float, float]] = {}
        self.losses: tuple[float, ...] = ()
        self.is_finished = False


def finetune_(
    model: nn.Module,
    batches: Feed | Iterable[Any],
    options: QatOptions,
    *,
    teacher: nn.Module | None = None,
    ranges: Ranges | None = None,
    folder: Path | None = None,
) -> Finetuning:
    """Train a folded classifier while its weights and inputs are rounded as int8 will round them.

    The loss is the KL divergence of its answers from the teacher's and, with labels and
    `label_weight`, their cross entropy. All layers are in inference mode: what normalizes still
    does so by its running statistics. Afterwards the weights are float as any; rounded, they are
    those of the loss. Nothing is drawn at random.

    Args:
        model: with its batch norms folded, on its device; changed in place.
        batches: a feed, or an iterable of inputs, or of pairs of inputs and labels, read as often
            as needed.
        options: steps, rate, bits. Those of pictures and of the device are the feed's.
        teacher: returns the logits to learn from; None takes the model as it is given.
        ranges: of inputs to begin with; None measures them, to the least squared error, on the
            first batches.
        folder: of a run that resumes exactly, see `normapps.engine.loop`; None keeps none.

    Raises:
        InputError: no batches, no layers to round, no logits, a folder of another run, or a loss
            that is not finite. The model is then as it was, also after Ctrl-C.
    """
    feed = batches if isinstance(batches, Feed) else Rounds(batches)
    float_network = detached_copy(model) if teacher is None or teacher is model else teacher
    done = Finetuning()
    _remember(model, done)
    try:
        with inference(model), _learning(model):
            found = _starting_ranges(model, feed, options, ranges)
            trainer = QatTrainer(model, feed, options, float_network, found)
            done.is_finished = _run(trainer, options, folder)
            trainer.rounding.cut_off_()
    except BaseException:
        done()
        raise
    done.ranges, done.losses = trainer.rounding.ranges, tuple(trainer.losses)
    return done


class Rounds:
    """The batches of an iterable, one round after the other, as a `Feed`.

    Args:
        batches: of inputs (N, ...), or of pairs of inputs and class indices (N,).

    Raises:
        InputError: it is gone after one pass; and, when a batch is asked for, it is empty, or a
            batch is something else.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if iter(batches) is batches:
            raise InputError(
                f"a {type(batches).__name__} is gone after one pass: give a list or a DataLoader"
            )
        self.batches = batches
        self._next, self._endless = 0, self._all()

    def batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the batch of a step; those before it are read and passed over."""
        if step < self._next:
            self._next, self._endless = 0, self._all()
        while self._next < step:
            next(self._endless)
            self._next += 1
        self._next += 1
        return next(self._endless)

    def _all(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        while True:
            batch = None
            for batch in self.batches:
                yield _parted(batch)
            if batch is None:
                raise InputError("there are no batches to learn from")


def _parted(batch: Any) -> tuple[Tensor, Tensor | None]:
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if not parts or not all(isinstance(each, Tensor) for each in parts[:2]):
        raise InputError(
            f"a batch of {type(batch).__name__}: give tensors (N, ...), or pairs of them and labels"
        )
    return parts[0], parts[1] if len(parts) > 1 else None


def _starting_ranges(
    model: nn.Module, feed: Feed, options: QatOptions, given: Ranges | None
) -> Ranges:
    if options.weights_only:
        return {}
    if given is not None:
        return given
    first = feed.batches if isinstance(feed, Rounds) else _inputs(feed, options.steps)
    return input_ranges(model, first, method="mse", exclude=options.exclude, limit=_MEASURED)


def _inputs(feed: Feed, steps: int) -> Iterator[Tensor]:
    for step in range(steps):
        yield feed.batch(step)[0]


def _run(trainer: QatTrainer, options: QatOptions, folder: Path | None) -> bool:
    """Take the steps; return whether all are taken."""
    if folder is None:
        for step in range(options.steps):
            trainer.step(step)
        return True
    loop = Loop(
        folder, options, options.steps, options.fixed, options.seed, options.save_every,
        options.stop_after, device=trainer.device,
    )  # fmt: skip
    loop.run(trainer)
    return loop.is_finished


@contextmanager
def _learning(model: nn.Module) -> Iterator[None]:
    """Let all parameters require a gradient; afterwards each does as before and has none."""
    flags = [(each, each.requires_grad) for each in model.parameters()]
    try:
        model.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None


def _remember(model: nn.Module, undo: Undo) -> None:
    kept = [(each, each.detach().clone()) for each in model.parameters()]

    @torch.no_grad()
    def restore() -> None:
        for parameter, old in kept:
            parameter.copy_(old)

    undo.add(restore)
