"""AutoDIAL (Carlucci et al. 2017): how much domains share of their moments is learnt a layer.

Cross entropy on the sources and λ times the entropy of the target's predictions (eq. 5), λ = 0.1
as in the paper. The layers are `norm.layers.autodial`.
"""

from __future__ import annotations

from .coupled import Coupled


class AutoDial(Coupled):
    """Batch norms of mixed moments; the published network has the target's mixture."""

    kind = "autodial"
