"""Training on labelled sources and unlabelled targets: the run from pools to model folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.pool import Pool
from ...engine.device import place, resolve_device
from ...engine.distributed import World, world
from ...engine.loop import Loop
from ...errors import InputError
from ...measure.report import Verdict, write_report
from ...models.folder import load_model
from ...models.load import OpenedModel
from ...models.preprocessing import Preprocessing
from ...norm.nesting import detached_copy
from ...training.classes import Matched, count_outputs, match_classes, split
from ...training.evaluation import PoolBatches, Score, right_answers
from ...training.identity import pictures_told, weights_told
from ...training.parts import free_
from .base import Published
from .evaluation import judge
from .methods import make_method
from .options import RecipeOptions, needy_flag
from .publishing import HELD, WHOLE, folder_names, publish, report_of
from .sampling import Feed
from .trainer import Trainer

_MOST_MEASURED = 10_000
"""Pictures of a target that AdaBN's statistics are taken from."""


@dataclass(frozen=True)
class Trained:
    """What `train_domains` made.

    Attributes:
        models: the network of each target, or one for all; () before the run is finished, and in
            processes other than the first.
        folders: their model folders; () where the network was given without its origin, and in
            processes other than the first.
        scores: of the targets that have labels, in their order.
        verdict: what is advised; None where there are no models.
        is_finished: whether all steps are taken; the same in all processes.
    """

    models: tuple[nn.Module, ...] = ()
    folders: tuple[Path, ...] = ()
    scores: tuple[Score, ...] = ()
    verdict: Verdict | None = None
    is_finished: bool = False


@dataclass(frozen=True)
class Domains:
    """The pictures of a run.

    Attributes:
        sources: labelled, class indices as the network's outputs.
        targets: what is adapted to; () for methods that need none.
        tests: what accuracy is measured on, one a target; a target itself where it is left out.
        names: of the targets.
        classes: names of the outputs, for the model's history.
    """

    sources: tuple[Pool, ...]
    targets: tuple[Pool, ...] = ()
    tests: tuple[Pool, ...] = ()
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def train_domains(
    model: nn.Module | OpenedModel,
    sources: Sequence[Pool],
    targets: Sequence[Pool],
    options: RecipeOptions,
    folder: Path,
    *,
    tests: Sequence[Pool] = (),
    names: Sequence[str] = (),
    hold_out: int = 0,
    fresh: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Trained:
    """Train a network over domains, or continue what the folder holds.

    Everything random in step i comes from (seed, i, rank): a run that is interrupted and resumed
    takes the same steps as one that is not. Under torchrun each process draws its own pictures
    and gradients are averaged.

    Args:
        model: with an output a class; an `OpenedModel` is published as model folders. It stays
            as it is.
        sources: labelled pools.
        targets: pools; their labels serve only to measure.
        options: method and recipe.
        folder: the run: options.json, metrics.jsonl, checkpoint/, then report.json, report.html
            and `model`, or `model-<name>` for each of several targets.
        tests: labelled pools to measure on, one a target.
        names: of the targets; `target`, `target-2` … without.
        hold_out: without `tests`, measure on every n-th picture of a target that has labels, and
            do not train on it; 0: measure on what is trained on.
        fresh: names of parameters that learn with `options.head_lr` times the rate.
        overwrite: start anew if the folder holds a run.

    Returns:
        The networks and how good they are; nothing yet if `options.stop_after` came first.

    Raises:
        InputError: pools that do not fit each other or the network, a run of other options in the
            folder, or a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    _check(options, sources, targets, tests)
    chosen = tuple(names) or tuple(
        "target" + (f"-{number + 1}" if number else "") for number in range(len(targets))
    )
    matched = match_classes(
        [(f"source {number}", pool) for number, pool in enumerate(sources)],
        [*zip(chosen, targets, strict=True), *zip(chosen, tests, strict=False)],
    )
    domains = _domains(matched, chosen, hold_out)
    device = resolve_device(options.device)
    with world(device) as here:
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        run = _Run(model, domains, options, folder, here, device, fresh, overwrite)
        try:
            run.loop.run(run.trainer)
            return run.finish() if run.loop.is_finished else Trained()
        finally:
            run.trainer.release()


class _Run:
    """One run: its parts, and what becomes of it."""

    def __init__(
        self,
        model: nn.Module | OpenedModel,
        domains: Domains,
        options: RecipeOptions,
        folder: Path,
        here: World,
        device: torch.device,
        fresh: tuple[str, ...],
        overwrite: bool,
    ) -> None:
        self.opened = model if isinstance(model, OpenedModel) else None
        plain = model.model if isinstance(model, OpenedModel) else model
        self.domains, self.options, self.folder = domains, options, folder
        self.here, self.device = here, device
        wanted = self.opened.preprocessing if self.opened else Preprocessing.of(plain)
        self.normalize = wanted.normalize
        _check_fit(plain, domains)
        if options.baseline:
            _check_fit(load_model(options.baseline), domains, f"--baseline {options.baseline}")
        # the folder is looked at before anything is made
        self.loop = Loop(
            folder, options, options.steps, options.fixed, options.seed, options.save_every,
            options.stop_after, here, device, overwrite,
        )  # fmt: skip
        identity = {
            "weights": weights_told(plain),
            "pictures": pictures_told(domains.sources, domains.targets, domains.classes),
            "preprocessing": wanted.describe(),
        }
        counts = len(domains.sources), len(domains.targets)
        self.method = make_method(place(detached_copy(plain), device), *counts, options)
        free_(self.method.network.inner, options.train)  # the method's own parameters too
        self.method.network.to(device)
        feed = Feed(
            domains.sources, domains.targets if self.method.has_target else (), options,
            self.normalize, looks=domains.targets, views=self.method.views, here=here,
            device=device,
        )  # fmt: skip
        self.trainer = Trainer(
            self.method, feed, options, here, device, identity, fresh, self._validate
        )

    def finish(self) -> Trained:
        """Publish the networks, measure them, report."""
        result = Trained(is_finished=True)
        if self.here.is_main:
            published = self._publish()
            models = tuple(each.model for each in published)
            scores = self._scores(models, self._baselines(published))
            verdict = judge(scores)
            folders = self._write(published, scores, verdict)
            result = Trained(models, folders, tuple(scores), verdict, is_finished=True)
        self.here.barrier()
        return result

    def _pools(self) -> tuple[Pool, ...]:
        return (*self.domains.sources, *self.domains.targets)

    def _publish(self) -> list[Published]:
        found = [
            self.method.publish(number, self._pictures(number))
            for number in range(self.method.models)
        ]
        # in the memory format that a model folder opens in, so that it computes the same bits
        for each in found:
            convert: Any = each.model.eval().to
            convert(memory_format=torch.contiguous_format)
        return found

    def _pictures(self, number: int) -> Iterable[Tensor]:
        """A target's training pictures as the network takes them, mixed, without augmentation."""
        if not self.domains.targets:
            return ()
        pool = self.domains.targets[number]
        if len(pool) > _MOST_MEASURED:
            generator = torch.Generator().manual_seed(self.options.seed)
            pool = Pool(
                pool.images[torch.randperm(len(pool), generator=generator)[:_MOST_MEASURED]]
            )
        return PoolBatches(
            pool, self.normalize, self.options.eval_batch_size, self.device, self.options.seed
        )

    def _validate(self) -> dict[str, float]:
        """The accuracy on each target that has labels, as it is now."""
        models = tuple(each.model for each in self._publish())
        return {f"accuracy/{each.name}": each.accuracy.mean for each in self._scores(models, None)}

    def _baselines(self, published: Sequence[Published]) -> nn.Module | None:
        """The network to compare with: one that was given, or what training left before AdaBN."""
        if self.options.baseline:
            return load_model(self.options.baseline).to(self.device)
        return published[0].before if published else None

    def _scores(self, models: Sequence[nn.Module], baseline: nn.Module | None) -> list[Score]:
        scores = []
        for number, (name, pool) in enumerate(
            zip(self.domains.names, self.domains.tests, strict=True)
        ):
            if pool.labels is None:
                continue
            batches = PoolBatches(pool, self.normalize, self.options.eval_batch_size, self.device)
            model = models[min(number, len(models) - 1)]
            before = None if baseline is None else right_answers(baseline, batches)
            scores.append(Score(name, right_answers(model, batches), before))
        return scores

    def _is_seen(self) -> bool:
        """Whether accuracy is measured on pictures that the run learnt from."""
        seen = self._pools() if self.options.needs_target else self.domains.sources
        tests = [pool for pool in self.domains.tests if pool.labels is not None]
        return any(test is pool for test in tests for pool in seen)

    def _write(
        self, published: Sequence[Published], scores: list[Score], verdict: Verdict
    ) -> tuple[Path, ...]:
        folders: list[Path] = []
        entry: dict[str, Any] = {
            "trained": "normapps adapt train",
            "method": self.options.method,
            "steps": self.options.steps,
            "classes": list(self.domains.classes),
        }
        names = folder_names(self.domains.names, len(published))
        if self.opened is not None:
            for number, each in enumerate(published):
                own = {} if len(published) == 1 else {"target": self.domains.names[number]}
                folders.append(publish(self.folder / names[number], self.opened, each, entry | own))
        facts = {
            "models": [each.name for each in folders],
            "classes": entry["classes"],
            "pictures": [len(pool) for pool in self._pools()],
        }
        told = report_of(self.options, scores, verdict, facts, WHOLE if self._is_seen() else HELD)
        write_report(self.folder, told)
        return tuple(folders)


def _check(
    options: RecipeOptions, sources: Sequence[Pool], targets: Sequence[Pool], tests: Sequence[Pool]
) -> None:
    if not sources:
        raise InputError("no source; training needs labelled pictures")
    if options.needs_target and not targets:
        raise InputError(f"{needy_flag(options)}: needs the target's pictures, --target")
    if tests and len(tests) != len(targets):
        raise InputError(f"{len(tests)} test sets for {len(targets)} targets; give one for each")


def _domains(matched: Matched, names: tuple[str, ...], hold_out: int) -> Domains:
    targets, tests = matched.others[: len(names)], matched.others[len(names) :]
    if not tests:
        pairs = [split(pool, hold_out) for pool in targets]
        targets, tests = tuple(each for each, _ in pairs), tuple(each for _, each in pairs)
    return Domains(matched.sources, targets, tests, names, matched.classes)


def _check_fit(model: nn.Module, domains: Domains, name: str = "the network") -> None:
    shape = tuple(domains.sources[0].images.shape[1:])
    outputs = count_outputs(model, shape)
    if outputs != len(domains.classes):
        raise InputError(
            f"{name} has {outputs} outputs, the sources {len(domains.classes)} classes; give "
            "it a classifier of as many"
        )
