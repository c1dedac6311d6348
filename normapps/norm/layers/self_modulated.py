"""Self-modulated batch normalization (Chen et al. 2019): scale and shift from the latent."""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

from torch import Tensor, nn

from ...errors import InputError
from .base import Taxonomy, place_of
from .modulated import Modulated, ModulatedNorm, check_latent, modulated


class SelfModulatedNorm(ModulatedNorm):
    """γ(z)·standardize(x) + β(z), where γ and β share one small hidden layer.

    γ(z) = `weight` + U·relu(H·z + h) and β(z) = `bias` + V·relu(H·z + h); the condition is the
    latent z: (N, latent_features), or (1, latent_features) for all samples. `weight` from 1 and
    `bias` from 0 are the constant part that the paper has in its last layer too. Differs from the
    paper in that U and V start at 0, so that the layer starts as its base normalization.

    Args:
        num_features: channels C.
        latent_features: length of z.
        hidden_features: width of the hidden layer; 32 in the paper.
        eps, momentum, affine, bias, base, sync, process_group: see `ModulatedNorm`.
        layout, act, drop: see `NormLayer`.

    Raises:
        InputError: a width below 1, or an unknown base.
    """

    taxonomy: ClassVar = Taxonomy(
        "batch",
        "standardize",
        "from the latent",
        "Chen et al. 2019",
        "2 passes and an MLP a sample; inference 1",
    )

    def __init__(
        self,
        num_features: int,
        latent_features: int,
        hidden_features: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        **carried: Unpack[Modulated],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, **carried)
        if min(latent_features, hidden_features) < 1:
            sizes = f"{latent_features}, {hidden_features}"
            raise InputError(f"latent_features, hidden_features {sizes}: must be at least 1")
        self.latent_features = latent_features
        place = place_of(carried)
        self.hidden = nn.Linear(latent_features, hidden_features, **place)
        self.change = nn.Linear(hidden_features, 2 * num_features, bias=False, **place)
        nn.init.zeros_(self.change.weight)

    def modulation(self, x: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        """Return γ(z) and β(z), (N, C)."""
        latent = check_latent(self, condition, self.latent_features, x)
        change = self.change(self.hidden(latent.to(self.hidden.weight.dtype)).relu())
        return modulated(change, self.weight, self.bias)
