"""MixStyle: features in training get the mixed moments of their own picture and another's.

Zhou et al. 2021, "Domain Generalization with MixStyle", eq. 4-6 and algorithm 1. Differs from the
paper's code: biased variances.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError, unknown
from ...norm import INSTANCE, Moments, Undo, adain

MIXES = ("random", "crossdomain")
"""Whom a sample is mixed with: any of the batch, or one of the batch's other half."""

Patterns = str | Sequence[str]
"""Shell patterns of module names, one or several."""


def mix_style(x: Tensor, partner: Tensor, share: Tensor, eps: float = 1e-6) -> Tensor:
    """Give each sample the mixture of its instance moments and another's.

        σ_mix·(x−μ)/σ + μ_mix, μ_mix = λμ + (1−λ)μ', σ_mix = λσ + (1−λ)σ', σ² = var + eps

    The moments are constants: gradients flow through x alone, times σ_mix/σ.

    Args:
        x: (N, C, *S) features.
        partner: (N,) the number of the sample that each is mixed with.
        share: (N,) λ in [0, 1]; 1 leaves a sample as it is.
        eps: added to the variances.
    """
    own = Moments.of(x.detach(), INSTANCE)
    share = share.to(own.mean).unsqueeze(1)
    mean, std = (each * share + each[partner] * (1 - share) for each in (own.mean, own.std(eps)))
    return adain(x, Moments(own.count, mean, std.square() - eps), eps, own)


class MixStyle(nn.Module):
    """`mix_style` with random partners, in a share p of the training batches; else the identity.

    λ is drawn for each sample. Randomness is torch's (the CPU's generator), which gradient
    checkpointing restores, or that of `generator`, which it does not. A batch of one sample stays
    as it is.

    Args:
        p: probability of a batch to be mixed.
        alpha: λ is of Beta(alpha, alpha).
        eps: added to the variances.
        mix: `random` takes a permutation of the batch; `crossdomain` gives each sample of the
            batch's first half, which is to be of one domain, one of the second, and the other way
            round (one sample of an odd batch stays within its half).
        generator: on the CPU; None: torch's own.

    Raises:
        InputError: a `p` outside of [0, 1], an `alpha` that is not positive, an unknown `mix`.
    """

    def __init__(
        self,
        p: float = 0.5,
        alpha: float = 0.1,
        eps: float = 1e-6,
        mix: str = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise InputError(f"p {p}: must be within 0 and 1")
        if not alpha > 0:
            raise InputError(f"alpha {alpha}: must be above 0")
        if mix not in MIXES:
            raise unknown("mix", mix, MIXES)
        self.p, self.alpha, self.eps, self.mix = p, alpha, eps, mix
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, *S) features, mixed or as they are.

        Raises:
            InputError: in training, x has no axis of positions.
        """
        if not self.training or len(x) < 2:
            return x
        if x.dim() < 3:
            raise InputError(f"MixStyle got {tuple(x.shape)}, needs (N, C, *S) with positions")
        if torch.rand((), generator=self.generator) >= self.p:
            return x
        partner, share = self.partners(len(x)), self.shares(len(x))
        return mix_style(x, partner.to(x.device), share.to(x.device), self.eps)

    def partners(self, n: int) -> Tensor:
        """Draw the sample that each of n is mixed with, (N,)."""
        if self.mix == "random":
            return torch.randperm(n, generator=self.generator)
        half = (n + 1) // 2
        first, second = torch.arange(half), torch.arange(half, n)
        return torch.cat([self._shuffled(second), self._shuffled(first)])

    def shares(self, n: int) -> Tensor:
        """Draw λ of n samples, (N,) float32."""
        # torch's Beta takes no generator
        seed = int(torch.randint(2**62, (), generator=self.generator))
        share = np.random.default_rng(seed).beta(self.alpha, self.alpha, n)
        return torch.from_numpy(share).float()

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows in the brackets."""
        return f"p={self.p}, alpha={self.alpha}, mix={self.mix}"

    def _shuffled(self, indices: Tensor) -> Tensor:
        return indices[torch.randperm(len(indices), generator=self.generator)]


def add_mixstyle_(
    model: nn.Module,
    layers: Patterns = (),
    *,
    p: float = 0.5,
    alpha: float = 0.1,
    mix: str = "random",
    generator: torch.Generator | None = None,
) -> Undo:
    """Mix styles after some layers, where these are in training.

    By forward hooks: the network keeps its classes and keys.

    Args:
        model: any network.
        layers: shell patterns of module names, whose outputs are (N, C, *S); none: the first two
            stages, which networks of timm name in `feature_info` and ResNets call `layer1` and
            `layer2`.
        p, alpha, mix, generator: see `MixStyle`; all layers draw from one generator.

    Returns:
        the handle that takes the hooks off.

    Raises:
        InputError: a pattern matches no layer, there are none by default, or an option is wrong.
            In a forward pass: a layer returns no such features.
    """
    style = MixStyle(p, alpha, mix=mix, generator=generator)
    chosen = _named(model, layers) if layers else _first_stages(model)
    undo = Undo()
    for name, channels in chosen.items():
        hook = _Hook(name, style, channels)
        undo.add(model.get_submodule(name).register_forward_hook(hook).remove)
    return undo


class _Hook:
    """Mixes what a layer returns; `channels` is how many it should have, where that is known."""

    def __init__(self, name: str, style: MixStyle, channels: int | None) -> None:
        self.name, self.style, self.channels = name, style, channels

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> Tensor:
        is_tensor = isinstance(output, Tensor)
        if not is_tensor or self.channels not in (None, output.shape[1]):
            found = tuple(output.shape) if is_tensor else type(output).__name__
            wanted = "(N, C, *S)".replace("C", f"C={self.channels or 'C'}")
            raise InputError(
                f"layer '{self.name}' returns {found}, MixStyle needs {wanted}; name other layers"
            )
        mixed: Tensor = self.style.train(layer.training)(output)
        return mixed


def _named(model: nn.Module, patterns: Patterns) -> dict[str, int | None]:
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, int | None] = {}
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        taken = fnmatch.filter(names, pattern)
        if not taken:
            raise unknown("layer", pattern, names)
        found |= dict.fromkeys(taken)
    return found


def _first_stages(model: nn.Module) -> dict[str, int | None]:
    """The first two stages, but for the stem, and their channels."""
    told: Any = getattr(model, "feature_info", ())
    found: dict[str, int | None] = {
        each["module"]: each["num_chs"]
        for each in getattr(told, "info", told)
        if _is_stage(model, each["module"])
    }
    if not found:
        found = dict.fromkeys(name for name in ("layer1", "layer2") if hasattr(model, name))
    if not found:
        raise InputError(
            f"{type(model).__name__} does not tell its stages; name the layers after which styles "
            "are mixed: layers=['…']"
        )
    return dict(list(found.items())[:2])


def _is_stage(model: nn.Module, name: str) -> bool:
    """Whether it convolves and is no stem; a stem's activation can be listed before the stages."""
    convolves = any(weight.dim() > 1 for weight in model.get_submodule(name).parameters())
    return convolves and name.partition(".")[0] != "stem"
