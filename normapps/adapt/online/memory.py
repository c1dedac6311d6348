"""RoTTA's memory: samples of all predicted classes alike, the timely and the sure ones first.

Yuan et al. 2023, section 3.2 and algorithm 1 (category-balanced sampling with timeliness and
uncertainty). No network is needed here.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError


@dataclass
class Kept:
    """A sample in the memory.

    Attributes:
        sample: (...), without the batch's axis.
        label: predicted class.
        uncertainty: of the prediction, its entropy in nats.
        age: how many samples have been offered since, itself counted.
    """

    sample: Tensor
    label: int
    uncertainty: float
    age: int = 0


class Memory:
    """At most `capacity` samples, about as many of each predicted class.

    A class may take capacity/num_classes places. A sample of a class that has its share replaces
    the worst of its class; where the memory is full, the worst of the most frequent classes; in
    both cases only if that one's score is higher than its own, else it is left out. The score is
    w_a/(1+exp(−age/capacity)) + w_u·uncertainty/log(num_classes): old and unsure is bad.

    Args:
        capacity: samples, 64 in the paper.
        num_classes: C, 2 or more.
        age_weight, uncertainty_weight: w_a and w_u, the paper's λ_t and λ_u.

    Raises:
        InputError: no capacity, or fewer than two classes.
    """

    def __init__(
        self,
        capacity: int,
        num_classes: int,
        age_weight: float = 1.0,
        uncertainty_weight: float = 1.0,
    ) -> None:
        if capacity < 1:
            raise InputError(f"capacity {capacity}: must be at least 1")
        if num_classes < 2:
            raise InputError(f"{num_classes} class: a memory balanced by class needs 2 or more")
        self.capacity, self.num_classes = capacity, num_classes
        self.age_weight, self.uncertainty_weight = age_weight, uncertainty_weight
        self.kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, sample: Tensor, label: int, uncertainty: float) -> bool:
        """Offer a sample; all that is kept grows older by one.

        Returns:
            Whether the sample has been taken, in a copy.
        """
        new = Kept(sample.detach().clone(), label, uncertainty)
        is_taken = self._make_room(new)
        if is_taken:
            self.kept.append(new)
        for each in self.kept:
            each.age += 1
        return is_taken

    def score(self, item: Kept) -> float:
        """Return how much a sample deserves to go: higher for the older and the less sure."""
        age = self.age_weight / (1 + math.exp(-item.age / self.capacity))
        return age + self.uncertainty_weight * item.uncertainty / math.log(self.num_classes)

    def samples(self) -> Tensor:
        """Return the samples, (len, ...)."""
        return torch.stack([each.sample for each in self.kept])

    def ages(self) -> Tensor:
        """Return the samples' ages as shares of the capacity, (len,) float32 on the CPU."""
        return torch.tensor([each.age / self.capacity for each in self.kept])

    def state(self) -> dict[str, Any]:
        """Return all that is kept, as tensors and lists."""
        return {
            "num_classes": self.num_classes,
            "samples": [each.sample for each in self.kept],
            "labels": [each.label for each in self.kept],
            "uncertainties": [each.uncertainty for each in self.kept],
            "ages": [each.age for each in self.kept],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        columns = (state[name] for name in ("samples", "labels", "uncertainties", "ages"))
        self.kept = [Kept(*row) for row in zip(*columns, strict=True)]

    def _make_room(self, new: Kept) -> bool:
        counts = Counter(each.label for each in self.kept)
        if counts[new.label] * self.num_classes >= self.capacity:
            return self._remove_worst({new.label}, new)
        if len(self.kept) < self.capacity:
            return True
        most = max(counts.values())
        return self._remove_worst({label for label, count in counts.items() if count == most}, new)

    def _remove_worst(self, labels: set[int], new: Kept) -> bool:
        worst = max((each for each in self.kept if each.label in labels), key=self.score)
        if self.score(worst) <= self.score(new):
            return False
        self.kept = [each for each in self.kept if each is not worst]
        return True
