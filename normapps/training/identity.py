"""What a run is of: digests of its pictures and initial weights, so that it resumes as itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import nn

from ..data.pool import Pool
from ..norm.population.fingerprint import digest_of

_MOST_HASHED = 1000
"""Pictures of a pool that tell it from another one."""


def pictures_told(
    learnt: Sequence[Pool], others: Sequence[Pool], classes: Sequence[str]
) -> list[str]:
    """Return of each pool the number of pictures and 16 digits that other pictures would not have.

    Of large pools every n-th picture is looked at.

    Args:
        learnt: pools whose labels are learnt from; they count.
        others: pools whose labels do not matter.
        classes: names of the classes; they count.
    """
    told = []
    for number, pool in enumerate((*learnt, *others)):
        values = [pool.images[:: 1 + len(pool) // _MOST_HASHED]]
        if number < len(learnt) and pool.labels is not None:
            values.append(pool.labels)
        digits = "".join(digest_of("pictures", each) for each in values)
        whole = f"{digits} {tuple(classes)}".encode()
        told.append(f"{len(pool)} of {hashlib.sha256(whole).hexdigest()[:16]}")
    return told


def weights_told(model: nn.Module) -> str:
    """Return which network with which weights it is, 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for name, value in model.state_dict().items():
        whole.update(f"{name} {tuple(value.shape)} {digest_of(name, value)}\n".encode())
    return whole.hexdigest()[:16]
