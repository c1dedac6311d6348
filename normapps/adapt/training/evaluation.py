"""How good a trained network is on a target: right and wrong answers, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...data.pool import Pool
from ...engine.device import evaluating
from ...errors import InputError
from ...measure.accuracy import accuracy, paired_difference
from ...measure.interval import Estimate
from ...measure.report import NOT_RECOMMENDED, RECOMMENDED, UNDECIDED, Verdict
from ..outputs import logits_of
from .sampling import Normalize


@dataclass(frozen=True)
class PoolBatches:
    """A pool as batches of a network's inputs, mixed, as often as they are asked for.

    Args:
        pool: the pictures.
        normalize: from bytes to inputs.
        batch_size: pictures a batch; the last has fewer.
        device: where the batches are made.
        seed: of the order; None takes the pool's own.
    """

    pool: Pool
    normalize: Normalize
    batch_size: int
    device: torch.device
    seed: int | None = None

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(len(self.pool))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(len(self.pool), generator=generator)
        for rows in order.split(self.batch_size):
            images, _ = self.pool.batch(rows)
            yield self.normalize(images.to(self.device))


def right_answers(model: nn.Module, batches: PoolBatches) -> Tensor:
    """Return which of a labelled pool's pictures a network gets right, (M,) bool on the CPU.

    Raises:
        InputError: the pool has no labels.
    """
    labels = batches.pool.labels
    if labels is None:
        raise InputError("the pictures have no labels to compare answers with")
    with evaluating(model):
        answers = [logits_of(model(x)).argmax(1).cpu() for x in batches]
    return torch.cat(answers) == labels


@dataclass(frozen=True)
class Score:
    """What a network gets right on a target, beside another one where there is one.

    Attributes:
        name: the target's.
        right: (M,) bool.
        before: the other network's, of the same pictures; None without.
    """

    name: str
    right: Tensor
    before: Tensor | None = None

    @property
    def accuracy(self) -> Estimate:
        """The share of right answers with its interval."""
        return accuracy(int(self.right.sum()), len(self.right))

    @property
    def baseline(self) -> Estimate | None:
        """The other network's share."""
        if self.before is None:
            return None
        return accuracy(int(self.before.sum()), len(self.before))

    @property
    def difference(self) -> Estimate | None:
        """By how much the share grew, on the same pictures."""
        return None if self.before is None else paired_difference(self.before, self.right)


def judge(scores: list[Score]) -> Verdict:
    """Say whether the trained networks are to be taken in the place of the baseline."""
    if not scores:
        return Verdict(UNDECIDED, "No target has labels, so nothing says how good the network is.")
    known = [(each.before, each.right) for each in scores if each.before is not None]
    if not known:
        shares = ", ".join(_words(each.name, each.accuracy) for each in scores)
        return Verdict(UNDECIDED, f"{shares}; give --baseline to know whether that is better.")
    befores, afters = zip(*known, strict=True)
    gain = paired_difference(torch.cat(befores), torch.cat(afters))
    words = (
        f"{100 * gain.mean:+.1f} points on {gain.count} pictures "
        f"(95 %: {100 * gain.low:+.1f} … {100 * gain.high:+.1f}) over the baseline"
    )
    if gain.low > 0:
        return Verdict(RECOMMENDED, f"{words}.")
    if gain.high < 0:
        return Verdict(NOT_RECOMMENDED, f"{words}; keep the baseline.")
    return Verdict(UNDECIDED, f"{words}: too few pictures to tell.")


def _words(name: str, share: Estimate) -> str:
    return f"{name} {100 * share.mean:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"
