"""Group whitening (Huang et al. 2021): group norm whose groups are decorrelated, a sample each."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

from torch import Tensor

from ...errors import InputError, unknown
from ..matrix import multiply
from ..moments import Moments
from ..operations import WHITENING, whitening_matrix
from ..partition import INSTANCE
from ..precision import without_autocast
from .base import AffineNorm, Recovery, Taxonomy, check_elements, largest_divisor

METHODS = ("newton", *WHITENING)


class GroupWhitening(AffineNorm):
    """Whiten the g groups of channels of each sample against each other, then scale and shift.

    A sample (C, *S) is taken as g dimensions of C/g·S values each, whose g×g covariance is
    whitened; so unlike group norm, groups leave uncorrelated, and no batch is needed.

    Differs from the authors' `GroupItN`: ε is added to the covariance (there it is an option
    without effect), and Newton's iteration is the coupled one, which is stable.

    Args:
        num_features: channels C.
        num_groups: at most so many groups: the largest divisor of C that is not above. The
            attribute tells how many there are, g. With fewer than g values each, C/g·S, nothing
            but ε keeps the covariance from being singular.
        eps: ridge added to the covariance.
        affine, bias: have `weight`, and `bias`.
        method: `newton` whitens in part; `zca`, `cholesky` and `pca` wholly; see
            `whitening_matrix`.
        iterations: T of `newton`.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: fewer than one group or iteration, or an unknown method.
    """

    taxonomy: ClassVar = Taxonomy(
        "channel groups of a sample",
        "whiten (Newton)",
        "affine",
        "Huang et al. 2021",
        "2 passes of g products an element, 3T products O(g³) a sample, at inference too",
    )

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        method: str = "newton",
        iterations: int = 5,
        **carried: Unpack[Recovery],
    ) -> None:
        super().__init__(num_features, eps, affine, **carried)
        if method not in METHODS:
            raise unknown("whitening method", method, METHODS)
        if iterations < 1:
            raise InputError(f"iterations {iterations}: must be at least 1")
        self.num_groups = largest_divisor(num_features, num_groups)
        self.method, self.iterations = method, iterations

    def normalize(self, x: Tensor) -> Tensor:
        """Normalize and recover (N, C, *S).

        Raises:
            InputError: one value a group.
        """
        check_elements(self, math.prod(x.shape[1:]) // self.num_groups, x)
        apart = x.unflatten(1, (self.num_groups, -1))
        moments = Moments.of(apart, INSTANCE, full=True)
        matrix = whitening_matrix(moments, self.method, self.eps, self.iterations)
        with without_autocast(matrix):
            shift = -(matrix @ moments.mean.unsqueeze(2)).squeeze(2)
        return self.recover(multiply(apart, INSTANCE, matrix, shift).flatten(1, 2))
