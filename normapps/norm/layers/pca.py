"""PCA whitening over the batch (Huang et al. 2018): principal axes, each standardized."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..moments import Moments
from .base import Taxonomy
from .whitening import Whitening


class PCANorm(Whitening):
    """`Whitening` by W = Λ^-½Uᵀ, the axes by growing variance, their largest entries positive.

    What the paper warns of: where two variances are nearly equal, axes change places from batch to
    batch, so that a channel is not the same feature twice (stochastic axis swapping). Small groups
    of unlike variances suffer least; `ZCANorm` not at all.

    Differs from the authors' code, which keeps a running average of W, in which swapped axes
    cancel: Σ is kept, and W derived. The signs, which are arbitrary there, are fixed.

    Its options are those of `Whitening`.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch, channel groups",
        "whiten (PCA)",
        "affine",
        "Huang et al. 2018",
        "2 passes of d products an element, eigh O(d³) a group; inference a 1×1 convolution",
    )
    method: ClassVar[str] = "pca"

    def whitening(self, moments: Moments) -> Tensor:
        """Return the whitening matrices (G, d, d)."""
        matrix = super().whitening(moments)
        largest = matrix.detach().abs().argmax(2, keepdim=True)
        return matrix * matrix.detach().gather(2, largest).sign()
