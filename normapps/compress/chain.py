"""The stages of a compression, each by the function of its own command.

A stage is complete or absent. What is complete is not done again, what was interrupted goes on
from its checkpoint, and whatever comes after a stage that is done anew is done anew, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.progress import BatchProgress
from ..measure.clock import Clock
from ..models.folder import MANIFEST
from ..quant.options import QuantizeOptions
from ..quant.quantize import quantize_model
from ..slim.finetune import slim_finetune
from ..slim.fitting import MODEL
from ..slim.prune import prune_model
from ..slim.prune_options import PruneOptions
from ..slim.train import slim_train
from ..slim.train_options import FinetuneOptions, SparseOptions
from .options import CompressOptions
from .split import FOLDER, TEST, TRAIN, Split

SPARSE, PRUNED, FINETUNED, INT8 = "sparse", "pruned", "finetuned", "int8"
"""Stages by name, which are their folders in OUT, too."""

STAGES = (SPARSE, PRUNED, FINETUNED, INT8)

_OPENING = ("pretrained", "checkpoint", "num_classes", "mean", "std", "size", "resize")
"""Options that the first stage opens MODEL with; what it writes knows them."""

_REPORT = "report.html"


@dataclass(frozen=True)
class Chain:
    """What the stages have to do with.

    Attributes:
        spec: MODEL.
        out: the folder that gets a folder a stage.
        options: of all.
        split: who trains and who judges.
        say: told what is done, a line each.
        bars: makes a bar for a stage.
        clock: told what took how long.
        penalty: of the sparse training, see `penalty_of`.
        said: lines that need not be said again.
    """

    spec: str
    out: Path
    options: CompressOptions
    split: Split
    say: Callable[[str], object]
    bars: Callable[[], BatchProgress]
    clock: Clock
    penalty: Mapping[str, Any]
    said: set[str] = field(default_factory=set)

    @property
    def names(self) -> tuple[str, ...]:
        """The stages of this compression, in order."""
        options, trains = self.options, self.split.is_labelled
        wanted = {
            SPARSE: trains and options.sparse_steps > 0,
            PRUNED: True,
            FINETUNED: trains and options.finetune_steps > 0,
            INT8: options.int8,
        }
        return tuple(name for name in STAGES if wanted[name])

    @property
    def train(self) -> str:
        """The list of the pictures that make the network."""
        return str(self.out / FOLDER / TRAIN)

    @property
    def test(self) -> str:
        """The list of the pictures that judge it."""
        return str(self.out / FOLDER / TEST)

    def folder(self, name: str) -> Path:
        """What a stage writes."""
        return self.out / name

    def model(self, name: str) -> Path:
        """The model folder in what a stage writes."""
        is_run = name in (SPARSE, FINETUNED)
        return self.folder(name) / MODEL if is_run else self.folder(name)

    def is_complete(self, name: str) -> bool:
        """Whether a stage came to its end: its last file is there."""
        last = _REPORT if name in (SPARSE, FINETUNED) else MANIFEST
        return (self.folder(name) / last).is_file()

    def tell(self, line: str) -> None:
        """Say what a stage says, but for what another one has said, too."""
        if line not in self.said:
            self.said.add(line)
            self.say(f"  {line}")

    def run(self) -> None:
        """Do what is left to do.

        Raises:
            InputError: as the functions of the stages.
            KeyboardInterrupt: after Ctrl-C; the next call goes on from there.
        """
        spec = self.spec
        for number, name in enumerate(self.names):
            if self.is_complete(name):
                self.say(f"{name}: is complete")
            else:
                for later in STAGES[STAGES.index(name) + 1 :]:
                    shutil.rmtree(self.folder(later), ignore_errors=True)
                self.say(f"{name}:")
                self.clock(name, lambda: _RUN[name](self, spec, self._opening(number == 0)))  # noqa: B023
            spec = str(self.model(name))

    def _opening(self, is_first: bool) -> dict[str, Any]:
        names = _OPENING if is_first else ()
        found = {name: getattr(self.options, name) for name in names}
        return found | {"seed": self.options.seed, "device": self.options.device}

    def fitting(self, steps: int) -> dict[str, Any]:
        """What both trainings take."""
        chosen = self.options
        return {
            "steps": steps,
            "warmup": min(50, steps // 10),
            "optimizer": chosen.optimizer,
            "batch_size": chosen.batch_size,
            "test": self.test,
        }


def _sparse(chain: Chain, spec: str, opening: dict[str, Any]) -> None:
    chosen = chain.options
    options = SparseOptions(
        **opening,
        **chain.fitting(chosen.sparse_steps),
        **chain.penalty,
        lr=chosen.sparse_lr,
        head_lr=chosen.head_lr,
    )
    _fit(chain, slim_train, spec, SPARSE, options)


def _finetune(chain: Chain, spec: str, opening: dict[str, Any]) -> None:
    chosen = chain.options
    before = chain.model(SPARSE) if SPARSE in chain.names else None
    options = FinetuneOptions(
        **opening,
        **chain.fitting(chosen.finetune_steps),
        lr=chosen.finetune_lr,
        baseline="" if before is None else str(before),
    )
    _fit(chain, slim_finetune, spec, FINETUNED, options)


def _fit(chain: Chain, train: Callable[..., Any], spec: str, name: str, options: Any) -> None:
    folder = chain.folder(name)
    if not (folder / "options.json").exists():  # nothing yet that a run could go on from
        shutil.rmtree(folder, ignore_errors=True)
    bar = chain.bars()
    with bar:
        train(
            spec,
            chain.train,
            folder,
            options,
            say=chain.tell,
            progress=lambda place, done, total: bar.advance(place, total),
            ready=lambda: bar.__exit__(None, None, None),
        )


def _prune(chain: Chain, spec: str, opening: dict[str, Any]) -> None:
    options = PruneOptions(
        **opening,
        **chain.options.amount,
        data=chain.train,
        batch_size=chain.options.batch_size,
        latency=False,
    )
    with chain.bars() as bar:
        folder = chain.folder(PRUNED)
        prune_model(spec, folder, options, say=chain.tell, progress=bar.advance)


def _quantize(chain: Chain, spec: str, opening: dict[str, Any]) -> None:
    chosen = chain.options
    options = QuantizeOptions(
        **opening,
        data=chain.train,
        test=chain.test,
        per_channel=chosen.per_channel,
        bias_correction=chosen.bias_correction,
        finetune=chosen.qat_steps,
        max_drop=chosen.max_drop,
        batch_size=chosen.batch_size,
        latency=chosen.latency,
        sensitivity=False,
    )
    with chain.bars() as bar:
        folder = chain.folder(INT8)
        quantize_model(spec, folder, options, say=chain.tell, progress=bar.advance)


_RUN: dict[str, Callable[[Chain, str, dict[str, Any]], None]] = {
    SPARSE: _sparse,
    PRUNED: _prune,
    FINETUNED: _finetune,
    INT8: _quantize,
}
