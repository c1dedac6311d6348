"""TransNorm (Wang et al. 2019): channels on which the domains agree count for more.

The paper puts the layer into DANN and CDAN; here cross entropy and the target's entropy go with
it, as with the other methods. Differs from the paper's code in how a network begins: the gain is
2 in the mean, so scales and shifts start halved, and the network as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from .base import JointNetwork
from .coupled import Coupled

if TYPE_CHECKING:
    from ...norm.domain import DomainModel


class TransNorm(Coupled):
    """Batch norms with a gain a channel, which is in the published network's scales and shifts."""

    kind = "transnorm"

    def build(self, model: nn.Module) -> JointNetwork:
        """Make the layers and halve their scales and shifts."""
        network = super().build(model)
        model = cast("DomainModel", network.model)
        with torch.no_grad():
            for bank in model.banks().values():
                for each in (bank.weight, bank.bias):
                    if each is not None:
                        each.mul_(0.5)
        return network
