"""The pictures of an analysis: decoded once, mixed once, given out in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.labels import fitting_labels
from ..data.pictures import Pictures
from ..data.pool import Pool
from ..engine.device import evaluating
from ..errors import InputError
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from .hooks import Batch

PSEUDO = "the model's own answers stand in for labels"


@dataclass(frozen=True, eq=False)
class Sample:
    """Pictures in memory, as a network takes them.

    Attributes:
        images: (N, C, H, W) uint8, in mixed order.
        preprocessing: of the network.
        device: where batches lie.
        labels: (N,) int64 on the device, None where they are not known.
        origin: of the labels, in words.
        failed: a line for each picture that could not be read.
    """

    images: Tensor
    preprocessing: Preprocessing
    device: torch.device
    labels: Tensor | None = None
    origin: str = ""
    failed: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        pictures: Pictures,
        device: torch.device,
        *,
        outputs: int | None = None,
        known: Sequence[str] = (),
        seed: int = 0,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sample:
        """Decode pictures, mix them, and take their labels if they are the model's classes.

        Args:
            pictures: the set.
            device: where batches are to lie.
            outputs, known: of the model, see `model_classes`; None takes no labels.
            seed: of the order: the classes of a folder follow each other.
            progress: told of the pictures that are decoded, and of how many.

        Raises:
            InputError: fewer than two pictures can be read.
        """
        pool = Pool.read(pictures, progress=progress)
        if len(pool) < 2:
            raise InputError(
                f"{pictures.place}: one picture has no statistics of a batch; give two or more,"
                " better 64"
            )
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        images, labels = pool.batch(order)
        found, why = None, "the model returns no logits"
        if outputs is not None:
            found, why = fitting_labels(pictures, labels, outputs, known)
        origin = f"labels of {pictures.place}" if found is not None else f"{PSEUDO} ({why})"
        found = None if found is None else found.to(device)
        return cls(images, pictures.preprocessing, device, found, origin, pool.failed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Return one picture (C, H, W), normalized."""
        return self.preprocessing.normalize(self.images[index].to(self.device))

    def sizes(self, batch_size: int) -> list[int]:
        """Return the sizes of the batches: nearly equal, so that the last is no single picture."""
        count = -(-len(self) // batch_size)
        count = max(1, min(count, len(self) // 2))
        return [len(self) // count + (i < len(self) % count) for i in range(count)]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all pictures in batches of at most so many, or of 3 if that is 2."""
        start = 0
        for size in self.sizes(batch_size):
            chosen = slice(start, start + size)
            x = self.preprocessing.normalize(self.images[chosen].to(self.device))
            yield x, None if self.labels is None else self.labels[chosen]
            start += size

    def labelled(self, model: nn.Module, batch_size: int) -> Sample:
        """Return the sample with the model's own answers as labels, if it has none.

        Raises:
            InputError: the model returns no logits.
        """
        if self.labels is not None:
            return self
        with evaluating(model):
            found = [logits_of(model(x)).argmax(1) for x, _ in self.batches(batch_size)]
        return replace(self, labels=torch.cat(found))
