"""`gan classifier`: a small classifier whose features pictures of a GAN are scored by.

Where the pictures are not photographs, or no published network is at hand, a network trained on
the same kind of data tells real from drawn better than one of ImageNet. As LeNet did for MNIST
(Bińkowski et al. 2018, section 5). A score of such features names the network and its hash.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.pool import Pool
from ..engine.device import place, resolve_device
from ..engine.distributed import World, world
from ..engine.loop import Loop, check_folder
from ..engine.run import flatten, optimizer_tensors, restore_optimizer, unflatten
from ..errors import InputError
from ..files import sha256, write_text
from ..measure.accuracy import accuracy
from ..measure.interval import Estimate
from ..models.folder import WEIGHTS, build, save_model
from ..models.preprocessing import Preprocessing
from ..training.classes import match_classes, split
from ..training.evaluation import PoolBatches, right_answers
from ..training.identity import pictures_told
from ..training.optimizing import distributed, learning_rate, make_optimizer
from ..training.sampling import LabelledFeed
from .classifier_options import ClassifierOptions
from .data import read_pool

MODEL, REPORT = "model", "report.json"
"""Where in a run folder the network and its accuracy are."""

_CLIP = 10.0
"""Largest norm of a step's gradient."""


@dataclass(frozen=True)
class Classified:
    """What a run made.

    Attributes:
        is_finished: whether all steps are taken; the same in all processes.
        folder: the model folder; None before the end, and in processes other than the first.
        accuracy: the share of right answers on the test pictures, with Wilson's interval.
        sha256: of the weight file.
    """

    is_finished: bool = False
    folder: Path | None = None
    accuracy: Estimate | None = None
    sha256: str = ""


def gan_classifier(
    folder: Path, options: ClassifierOptions, say: Callable[[str], object] = print
) -> Classified:
    """Read labelled pictures and train a classifier on them; see `train_classifier`.

    Args:
        folder: the run folder.
        options: `data`, what is measured on, and the recipe.
        say: told what was read and left out, a line each.

    Raises:
        InputError: pictures or a folder that cannot be used.
    """
    if not options.overwrite:
        check_folder(folder, ClassifierOptions)
    train, test = _read(options, say)
    return train_classifier(train, test, options, folder)


def train_classifier(
    train: Pool, test: Pool, options: ClassifierOptions, folder: Path
) -> Classified:
    """Train a `small-cnn` on labelled pictures, or continue what the folder holds, exactly.

    At the end the folder has `model/` and `report.json` beside what `Loop` writes.

    Args:
        train: (M, 1 or 3, S, S) pictures to learn from, with labels.
        test: pictures to measure on, of the same shape; classes are matched by name.
        options: the recipe.
        folder: the run.

    Raises:
        InputError: pictures without labels or of two shapes, a run of other options in the
            folder, or a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    train, test, classes = _matched(train, test)
    arguments = {
        "num_classes": len(classes),
        "channels": train.images.shape[1],
        "size": train.images.shape[2],
        "width": options.width,
    }
    device = resolve_device(options.device)
    with world(device) as here:
        device = torch.device("cuda", here.local_rank) if device.type == "cuda" else device
        loop = Loop(
            folder, options, options.steps, options.fixed, options.seed, options.save_every,
            options.stop_after, here, device, options.overwrite,
        )  # fmt: skip
        network = place(build("small-cnn", arguments, seed=options.seed), device)
        source = {"builder": "small-cnn", "arguments": arguments}
        wanted = replace(Preprocessing.of(network, source), origin="gan classifier")
        identity = {"pictures": pictures_told([train], [], classes)[0]}
        feed = LabelledFeed(train, options, wanted.normalize, here, device)
        measured = PoolBatches(test, wanted.normalize, options.eval_batch_size, device)
        trainer = ClassifierTrainer(network, feed, options, here, device, identity, measured)
        try:
            loop.run(trainer)
        finally:
            trainer.release()
        found = Classified(is_finished=loop.is_finished)
        if loop.is_finished and here.is_main:
            found = _publish(trainer, folder, arguments, wanted, classes)
        here.barrier()
        return found


class ClassifierTrainer:
    """A `Task` of `engine.loop`: cross entropy of one classifier on one feed.

    Args:
        network: what is trained, on its device; changed in place.
        feed: where the batches come from.
        options: the recipe.
        here: this process among all.
        device: the network's.
        identity: JSON values that a resumed run must share.
        measured: labelled test pictures, asked for every `validate_every` steps.
    """

    def __init__(
        self,
        network: nn.Module,
        feed: LabelledFeed,
        options: ClassifierOptions,
        here: World,
        device: torch.device,
        identity: Mapping[str, Any],
        measured: PoolBatches,
    ) -> None:
        self.network, self.feed, self.options = network.train(), feed, options
        self.here, self.device, self.identity = here, device, dict(identity)
        self.measured = measured
        self._forward = distributed(network, here, device)
        self.optimizer = make_optimizer(network, options)

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step; return loss, gradient norm and, at times, test accuracy."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.options) * group["factor"]
        images, labels = self.feed.batch(step)
        is_half = self.options.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            logits = self._forward(images)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        # weights that are not numbers must not come into the checkpoint of Ctrl-C
        if torch.isfinite(norm):
            self.optimizer.step()
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        return {"loss": loss_value, "grad_norm": norm_value} | self._validated(step)

    def _validated(self, step: int) -> dict[str, float]:
        every = self.options.validate_every
        if not every or (step + 1) % every:
            return {}
        return {"accuracy": float(right_answers(self.network, self.measured).float().mean())}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return network, optimizer, and what the run is of."""
        tensors = flatten("network", self.network.state_dict())
        return {**tensors, **optimizer_tensors(self.optimizer)}, {"identity": self.identity}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of other pictures.
        """
        for name, now in self.identity.items():
            if values["identity"].get(name) != now:
                raise InputError(
                    f"the run was started with {name} {values['identity'].get(name)}, not {now}; "
                    "give what it was started with, or another folder"
                )
        self.network.load_state_dict(unflatten("network", tensors))
        restore_optimizer(self.optimizer, tensors)

    def release(self) -> None:
        """Let go of DDP: a process group that ends before its reducers can hang."""
        self._forward = self.network
        if self.here.size > 1:
            gc.collect()


def _read(options: ClassifierOptions, say: Callable[[str], object]) -> tuple[Pool, Pool]:
    def read(data: str, part: str) -> Pool:
        return read_pool(
            data,
            size=options.size,
            channels=options.channels,
            conditional=True,
            split=part,
            limit=options.limit,
            workers=options.workers,
            say=say,
        )

    train = read(options.data, "train")
    if options.test:
        return train, read(options.test, "train")
    return (
        split(train, options.hold_out) if options.hold_out else (train, read(options.data, "test"))
    )


def _matched(train: Pool, test: Pool) -> tuple[Pool, Pool, tuple[str, ...]]:
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = [tuple(each.images.shape[1:]) for each in (train, test)]
        raise InputError(f"test pictures are {shapes[1]}, not {shapes[0]}; give --size, --channels")
    matched = match_classes([("the pictures", train)], [("the test pictures", test)])
    return matched.sources[0], matched.others[0], matched.classes


def _publish(
    trainer: ClassifierTrainer,
    folder: Path,
    arguments: Mapping[str, Any],
    wanted: Preprocessing,
    classes: tuple[str, ...],
) -> Classified:
    right = right_answers(trainer.network, trainer.measured)
    found = accuracy(int(right.sum()), len(right))
    entry = {
        "trained": "normapps gan classifier",
        "weights": "trained by gan classifier",
        "steps": trainer.options.steps,
        "classes": list(classes),
        "accuracy": found.mean,
    }
    model = save_model(
        folder / MODEL,
        trainer.network.eval(),
        builder="small-cnn",
        arguments=arguments,
        preprocessing=wanted.to_json(),
        history=[entry],
        overwrite=True,
    )
    digest = sha256(model / WEIGHTS)
    told = {
        "accuracy": found.mean, "low": found.low, "high": found.high,
        "pictures": found.count, "sha256": digest,
    }  # fmt: skip
    write_text(folder / REPORT, json.dumps(told, indent=2) + "\n")
    return Classified(True, model, found, digest)
