"""Translation without pairs: two generators, two discriminators, the way there and back.

Zhu et al. 2017, CycleGAN (cycle and identity losses), with the generator of Kim et al. 2020 and
spectrally normalized discriminators (Miyato et al. 2018). Both directions are trained because
either is the other's cycle. Differs from CycleGAN: no buffer of former fakes, and the networks
that are kept are averages over the steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engine.device import place
from ...engine.distributed import World
from ...errors import InputError
from ...models.folder import save_model
from ...models.translator import adalin_generator, patch_discriminator
from ...norm.weight import spectral_norm_
from .losses import discriminator_loss, generator_loss
from .options import TranslateOptions
from .task import TranslationTask
from .unpaired import Domains, Squares, to_bytes

GENERATORS = ("generator", "generator-back")
"""Source to target, and back: the networks' names, and their folders' in a run."""
JUDGES = ("judge-target", "judge-source")
_SHOWN = 6


class UnpairedTask(TranslationTask):
    """A `Task` that trains translators between two domains.

    Args:
        options: the recipe.
        domains: the pictures.
        here: this process among all.
        device: where the networks and batches lie.
    """

    def __init__(
        self, options: TranslateOptions, domains: Domains, here: World, device: torch.device
    ) -> None:
        super().__init__(_networks(options, device), GENERATORS, options, here, device)
        self.options, self._identity = options, domains.identity()
        pools = (domains.source, domains.target)
        self._source, self._target = (
            Squares(pool, options, number, here, device) for number, pool in enumerate(pools)
        )

    def step(self, step: int) -> dict[str, float]:
        """Take one step of all four networks.

        Returns:
            `d`, `adversarial`, `cycle`, `identity`: unweighted, of both directions together.
        """
        source, target = self._source.batch(step), self._target.batch(step)
        with self.autocast():
            made, kept = self._once(source, target)
        judged = self._judge(source, target, [each.detach() for each in made])
        self.change(JUDGES, judged, step)
        with self.autocast():
            back = self._again(made)
            fooled = [self.networks[n](x) for n, x in zip(JUDGES, made, strict=True)]
        terms = {
            "adversarial": sum_of(generator_loss(self.options.loss, each) for each in fooled),
            "cycle": _distance(back, (source, target)),
            "identity": _distance(kept, (target, source)),
        }
        self.change(GENERATORS, self._weighted(terms), step)
        self.update_averages(step)
        values = torch.stack([judged.detach(), *(each.detach() for each in terms.values())])
        return dict(zip(("d", *terms), values.tolist(), strict=True))

    def _once(
        self, source: Tensor, target: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Translate both domains; and what each generator makes of pictures it should keep."""
        there, here = (self.networks[name] for name in GENERATORS)
        n = len(source)
        to_target, to_source = there(torch.cat([source, target])), here(torch.cat([target, source]))
        return (to_target[:n], to_source[:n]), (to_target[n:], to_source[n:])

    def _again(self, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Translate what was translated back to where it came from."""
        there, here = (self.networks[name] for name in GENERATORS)
        return here(made[0]), there(made[1])

    def _judge(self, source: Tensor, target: Tensor, made: list[Tensor]) -> Tensor:
        parts = []
        for name, real, fake in zip(JUDGES, (target, source), made, strict=True):
            with self.autocast():
                maps = self.networks[name](torch.cat([real, fake]))
            halves = [each.chunk(2) for each in maps]
            first, second = [a for a, _ in halves], [b for _, b in halves]
            parts.append(discriminator_loss(self.options.loss, first, second))
        return sum_of(parts)

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        chosen = self.options
        weights = {"cycle": chosen.cycle_weight, "identity": chosen.identity_weight}
        return sum_of(weights.get(name, 1.0) * each for name, each in terms.items())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return networks, averages and optimizers, and which pictures they learn from."""
        tensors, values = super().state()
        return tensors, {**values, "identity": self._identity}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become what `state` told.

        Raises:
            InputError: it was learnt from other pictures.
        """
        for name, now in self._identity.items():
            if values["identity"][name] != now:
                raise InputError(
                    f"{name} {getattr(self.options, name[2:])}: holds other pictures than those "
                    "that the run was started with; give these, or begin another run"
                )
        super().restore(tensors, values)

    @torch.no_grad()
    def grid(self) -> Tensor:
        """Return rows source | translated | back, and beside them the same from the target."""
        blocks = []
        for domain, names in ((self._source, GENERATORS), (self._target, GENERATORS[::-1])):
            there, here = (self.averages[name] for name in names)
            seen = domain.fixed(_SHOWN)
            made = there(seen)
            rows = torch.cat([seen, made, here(made.clamp(-1, 1))], 3)
            blocks.append(rows.permute(1, 0, 2, 3).flatten(1, 2))
        gap = torch.ones_like(blocks[0][..., :8])
        return to_bytes(torch.cat([blocks[0], gap, blocks[1]], 2))

    def publish(self, folder: Path, step: int) -> None:
        """Write `generator/` (source to target) and `generator-back/` into the run folder."""
        chosen = self.options
        arguments = {"width": chosen.width, "blocks": chosen.blocks, "skip": chosen.skip}
        places = (chosen.source, chosen.target)
        for name, (given, wanted) in zip(GENERATORS, (places, places[::-1]), strict=True):
            entry = {"trained": "normapps translate train", "step": step, "steps": chosen.steps}
            save_model(
                folder / name,
                self.averages[name],
                builder="adalin-generator",
                arguments=arguments,
                preprocessing={"size": chosen.size, "source": given, "target": wanted},
                history=[{**entry, "ema": chosen.ema}],
                overwrite=True,
            )


def sum_of(parts: Any) -> Tensor:
    """Return the sum of 0-d tensors."""
    return torch.stack(list(parts)).sum()


def _networks(options: TranslateOptions, device: torch.device) -> dict[str, nn.Module]:
    networks: dict[str, nn.Module] = {}
    for name in GENERATORS:
        made = adalin_generator(3, options.width, options.blocks, options.skip)
        networks[name] = place(made, device)
    for name in JUDGES:
        judge = patch_discriminator(3, options.d_width)
        sigma: Any = options.sigma
        spectral_norm_(judge, sigma=sigma, size=options.size // 4)
        networks[name] = place(judge, device)
    return networks


def _distance(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    return sum_of(F.l1_loss(a.float(), b) for a, b in zip(found, wanted, strict=True))
