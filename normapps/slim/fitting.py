"""One supervised run: from a network and its pictures to a model folder and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import place, resolve_device
from ..engine.distributed import World, world
from ..engine.loop import Loop
from ..errors import InputError
from ..measure.report import Verdict
from ..models.folder import load_model, save_model
from ..models.load import OpenedModel
from ..models.preprocessing import Preprocessing
from ..norm.convert.converter import convert_norm_
from ..norm.nesting import detached_copy
from ..training.classes import count_outputs
from ..training.evaluation import PoolBatches, Score, right_answers
from ..training.identity import pictures_told, weights_told
from ..training.parts import free_
from ..training.sampling import LabelledFeed
from .material import Material
from .train_options import SupervisedOptions, steps_of
from .training import Regularize, SupervisedTrainer

MODEL = "model"
"""Where in a run folder the trained network is."""


@dataclass(frozen=True)
class Recipe:
    """What a command adds to a supervised run.

    Attributes:
        command: such as `slim finetune`, for the history.
        regularize: given the steps of the run, returns what makes a penalty on the scales.
        freeze_stats: batch norms keep their running statistics.
        fresh: parameters that learn with `head_lr` times the rate.
        reference: the network to compare with, and what the report calls it; None for none.
        entry: further facts for the history, JSON values.
        identity: further values that a resumed run must share.
        stretch: how many times as many steps as the options say are taken.
    """

    command: str
    regularize: Callable[[int], Regularize] | None = None
    freeze_stats: bool = False
    fresh: tuple[str, ...] = ()
    reference: tuple[str, nn.Module] | None = None
    entry: Mapping[str, Any] | None = None
    identity: Mapping[str, Any] | None = None
    stretch: float = 1.0


@dataclass(frozen=True)
class Fitted:
    """What a run made.

    Attributes:
        is_finished: whether all steps are taken; the same in all processes.
        model: the network; None before the end, and in processes other than the first.
        folder: its model folder; None where the network was given without its origin.
        score: right answers, beside the reference's where there is one.
        reference: what the report calls the network that it is compared with; "" for none.
        steps: of the whole run.
        strength: λ at the end, where there is a penalty.
        verdict: what is advised; set by the command.
        then: the command that comes next, "" for none; set by the command.
    """

    is_finished: bool = False
    model: nn.Module | None = None
    folder: Path | None = None
    score: Score | None = None
    reference: str = ""
    steps: int = 0
    strength: float | None = None
    verdict: Verdict | None = None
    then: str = ""


def fit(
    model: nn.Module | OpenedModel,
    material: Material,
    options: SupervisedOptions,
    folder: Path,
    recipe: Recipe,
) -> Fitted:
    """Train a classifier, or continue what the folder holds; write `folder/model` at the end.

    Everything random in step i comes from (seed, i, rank): a run that is interrupted and resumed
    takes the same steps as one that is not. Under torchrun each process draws its own pictures
    and gradients are averaged.

    Args:
        model: with an output a class; an `OpenedModel` is saved as a model folder. It stays as it
            is.
        material: pictures.
        options: of the training.
        folder: the run: options.json, metrics.jsonl, checkpoint/, model/.
        recipe: what the command adds.

    Raises:
        InputError: pictures that do not fit the network, a run of other options in the folder, or
            a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    device = resolve_device(options.device)
    with world(device) as here:
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        run = _Run(model, material, options, folder, recipe, here, device)
        try:
            run.loop.run(run.trainer)
            return run.finish() if run.loop.is_finished else Fitted()
        finally:
            run.trainer.release()


def compared(
    given: tuple[str, nn.Module] | None, options: SupervisedOptions
) -> tuple[str, nn.Module] | None:
    """Return the network to compare with: that of `--baseline`, or the given one.

    Raises:
        InputError: the baseline is no model folder.
    """
    if options.baseline:
        return f"baseline {options.baseline}", load_model(options.baseline)
    return given


class _Run:
    """One run: its parts, and what becomes of it."""

    def __init__(
        self,
        model: nn.Module | OpenedModel,
        material: Material,
        options: SupervisedOptions,
        folder: Path,
        recipe: Recipe,
        here: World,
        device: torch.device,
    ) -> None:
        self.opened = model if isinstance(model, OpenedModel) else None
        self.plain = model.model if isinstance(model, OpenedModel) else model
        self.material, self.options, self.folder = material, options, folder
        self.recipe, self.here, self.device = recipe, here, device
        wanted = self.opened.preprocessing if self.opened else Preprocessing.of(self.plain)
        self.normalize = wanted.normalize
        self._check()
        self.steps = round(recipe.stretch * steps_of(options, len(material.train), here.size))
        # the folder is looked at before anything is made
        self.loop = Loop(
            folder, options, self.steps, options.fixed, options.seed, options.save_every,
            options.stop_after, here, device, options.overwrite,
        )  # fmt: skip
        self.network = self._network()
        self.trainer = self._trainer(wanted)

    def _check(self) -> None:
        shape = tuple(self.material.train.images.shape[1:])
        networks = [("the network", self.plain)]
        if self.recipe.reference is not None:
            networks.append(self.recipe.reference)
        for name, network in networks:
            outputs, classes = count_outputs(network, shape), len(self.material.classes)
            if outputs != classes:
                raise InputError(
                    f"{name} has {outputs} outputs, the pictures {classes} classes; give it a"
                    " classifier of as many"
                )

    def _network(self) -> nn.Module:
        network = place(detached_copy(self.plain), self.device)
        if self.options.sync_norm and self.here.size > 1:
            convert_norm_(network, "batch", sync=True)
        free_(network, self.options.train)
        return network.to(self.device)

    def _trainer(self, wanted: Preprocessing) -> SupervisedTrainer:
        material, options = self.material, self.options
        feed = LabelledFeed(material.train, options, self.normalize, self.here, self.device)
        identity: dict[str, Any] = {
            "weights": weights_told(self.plain),
            "pictures": pictures_told([material.train], [], material.classes),
            "preprocessing": wanted.describe(),
            **(self.recipe.identity or {}),
        }
        make = self.recipe.regularize
        penalty = None if make is None else make(self.steps)
        return SupervisedTrainer(
            self.network, feed, replace(options, steps=self.steps), self.here, self.device,
            identity, self.recipe.fresh, penalty, self.recipe.freeze_stats,
            self._validate,
        )  # fmt: skip

    @property
    def strength(self) -> float | None:
        """λ as it is now."""
        penalty = self.trainer.regularizer
        return None if penalty is None else penalty.strength

    def finish(self) -> Fitted:
        """Save the network and measure it."""
        result = Fitted(is_finished=True, steps=self.steps)
        if self.here.is_main:
            model = self._published()
            folder = None if self.opened is None else self._save(model, self.opened)
            name, before = "", None
            if self.recipe.reference is not None:
                name = self.recipe.reference[0]
                before = self._right(self.recipe.reference[1].to(self.device))
            score = Score("after", self._right(model), before)
            result = Fitted(True, model, folder, score, name, self.steps, self.strength)
        self.here.barrier()
        return result

    def _published(self) -> nn.Module:
        """The network as its architecture has it, in the memory format that a folder opens in."""
        model = detached_copy(self.plain)
        state = self.network.state_dict()
        model.load_state_dict({key: value.detach().cpu() for key, value in state.items()})
        return model.eval().to(self.device)

    def _right(self, model: nn.Module) -> Tensor:
        size = self.options.eval_batch_size
        return right_answers(
            model, PoolBatches(self.material.test, self.normalize, size, self.device)
        )

    def _validate(self) -> dict[str, float]:
        right = self._right(self.network)
        return {"accuracy": float(right.float().mean())}

    def _save(self, model: nn.Module, opened: OpenedModel) -> Path:
        entry = {
            "trained": f"normapps {self.recipe.command}",
            "weights": f"trained by {self.recipe.command}",
            "steps": self.steps,
            "classes": list(self.material.classes),
            **(self.recipe.entry or {}),
        }
        if self.strength is not None:
            entry["strength"] = self.strength
        return save_model(
            self.folder / MODEL,
            model,
            builder=opened.source["builder"],
            arguments=opened.source["arguments"],
            preprocessing=opened.preprocessing.to_json(),
            history=[*opened.history, entry],
            overwrite=True,
        )
