"""The domains of an evaluation: one pool's pictures, corrupted in several ways."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..data.corruptions import corrupt, parse_corruption
from ..data.pool import MAX_BYTES, Pool
from .evaluate_options import CLEAN


class Domains:
    """A pool's pictures under corruptions, made when first asked for, kept while there is room.

    A picture is corrupted alike, by seed and index, whoever asks for it and in whichever order.

    Args:
        pool: the pictures as they are.
        max_bytes: the most memory that corrupted pictures may take; beyond, those that were asked
            for longest ago go.
    """

    def __init__(self, pool: Pool, max_bytes: int = MAX_BYTES) -> None:
        self.pool = pool
        self._most = max(1, max_bytes // max(1, pool.images.nbytes))
        self._kept: OrderedDict[tuple[str, int], tuple[Tensor, Tensor]] = OrderedDict()

    def images(self, domain: str, seed: int, indices: Tensor) -> Tensor:
        """Return pictures of a domain.

        Args:
            domain: `CLEAN`, or a corruption as `name:severity`.
            seed: of the corruption.
            indices: (n,) int64 positions in the pool.

        Returns:
            (n, C, H, W) uint8.

        Raises:
            InputError: no such corruption.
        """
        if domain == CLEAN:
            return self.pool.images[indices]
        images, is_made = self._store(domain, seed)
        missing = indices[~is_made[indices]].unique().tolist()
        name, severity = parse_corruption(domain)

        def make(index: int) -> None:
            picture = self.pool.images[index].permute(1, 2, 0).numpy()
            found = corrupt(np.ascontiguousarray(picture), name, severity, (seed, index))
            images[index] = torch.from_numpy(found).permute(2, 0, 1)

        with ThreadPoolExecutor(torch.get_num_threads()) as workers:
            list(workers.map(make, missing))
        is_made[missing] = True
        return images[indices]

    def _store(self, domain: str, seed: int) -> tuple[Tensor, Tensor]:
        key = (domain, seed)
        if key not in self._kept:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)
            blank = torch.zeros(len(self.pool), dtype=torch.bool)
            self._kept[key] = torch.empty_like(self.pool.images), blank
        self._kept.move_to_end(key)
        return self._kept[key]
