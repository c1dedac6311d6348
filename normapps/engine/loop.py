"""The loop of a training run: steps, metrics, checkpoints, and a run that resumes exactly.

A trainer is a `Task`: what a step does and what it has to remember. The loop does what is the
same in all: it counts, seeds, shows, writes, stops and resumes. Callbacks it has none.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import write_text
from ..options import flag, from_json, to_json
from .distributed import World
from .progress import TrainingProgress
from .run import Metrics, StopRequest, has_checkpoint, load_checkpoint, save_checkpoint

CHECKPOINT = "checkpoint/latest.safetensors"
"""Where in a run folder the newest checkpoint lies; the one before it is beside it."""


class Task(Protocol):
    """What a run trains."""

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step, its number counted from 0, and return its losses by name."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the next step depends on: tensors, and JSON values."""

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become what `state` told."""


@dataclass
class Loop:
    """The steps of one run and the folder that tells of them.

    The folder holds `options.json`, `metrics.jsonl`, TensorBoard's files where that is installed,
    and `checkpoint/`, the newest and the one before. Under torchrun every process takes the steps,
    the first one writes, and all stop together.

    Args:
        folder: the run's; made, or continued if it holds a run of the same options.
        options: a frozen dataclass, see `normapps.options`.
        steps: of the whole run.
        fixed: names of the options that a resumed run must share; the others may change.
        seed: torch's random state in step i comes from (seed, i, rank); a task that draws
            elsewhere takes `step_seed`.
        save_every: steps between checkpoints; there is always one at the end.
        stop_after: stop after this many steps of this call, 0 at the end.
        here: this process among all, from `engine.distributed.world`.
        device: where the processes' losses are averaged.
        restart: forget the run that the folder holds.

    Raises:
        InputError: the folder holds something else, or a run with other fixed options.
    """

    folder: Path
    options: Any
    steps: int
    fixed: Sequence[str] = ()
    seed: int = 0
    save_every: int = 200
    stop_after: int = 0
    here: World = field(default_factory=World)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    restart: bool = False

    def __post_init__(self) -> None:
        self.done = 0
        """Steps taken so far, of this and earlier calls."""
        check_folder(self.folder, type(self.options))
        self.here.barrier()  # nobody writes before all have looked
        if self.restart and self.here.is_main:
            _forget(self.folder)
        self.here.barrier()
        if has_checkpoint(self.folder / CHECKPOINT):
            check_fixed(self.folder, self.options, self.fixed)

    @property
    def is_finished(self) -> bool:
        """Whether all steps of the run are taken."""
        return self.done >= self.steps

    def run(self, task: Task, after: Callable[[int], None] | None = None) -> None:
        """Take the steps that are left, from the checkpoint if there is one.

        Args:
            task: what is trained; restored first where there is a checkpoint.
            after: called in every process after each step with the number of steps taken.

        Raises:
            InputError: a loss is not finite; the last checkpoint stays as it is.
            KeyboardInterrupt: Ctrl-C or SIGTERM came; the checkpoint of the last step is written.
        """
        self._resume(task)
        if self.here.is_main:
            write_text(self.folder / "options.json", to_json(self.options))
        metrics = Metrics(self.folder, self.done) if self.here.is_main else None
        try:
            stopped = self._steps(task, metrics, after)
        finally:
            if metrics is not None:
                metrics.close()
        self._save(task)
        if stopped:
            raise KeyboardInterrupt

    def _steps(
        self, task: Task, metrics: Metrics | None, after: Callable[[int], None] | None
    ) -> bool:
        """Take the steps; return whether somebody asked to stop before the end."""
        last = min(self.steps, self.done + (self.stop_after or self.steps))
        shown = TrainingProgress(self.steps, self.done, self.here.is_main)
        stopped = False
        with shown as progress, StopRequest() as stop, _own_random_state(self.device):
            while self.done < last and not stopped:
                torch.manual_seed(step_seed(self.seed, self.done, self.here.rank))
                values, stopped = self._agree(task.step(self.done), stop.requested)
                if metrics is not None:
                    metrics.add(self.done, values)
                self.done += 1
                progress.update(self.done, values)
                if after is not None:
                    after(self.done)
                if self.done % self.save_every == 0 and self.done < last:
                    self._save(task)
        return stopped

    def _agree(self, values: dict[str, float], stop: bool) -> tuple[dict[str, float], bool]:
        """Average the losses over the processes; all stop when one is asked to."""
        told = torch.tensor([*values.values(), float(stop)], dtype=torch.float64)
        if self.here.size > 1:
            told = self.here.mean(told.to(self.device, torch.float32)).cpu()
        *means, wish = told.tolist()
        if not all(math.isfinite(mean) for mean in means):
            raise InputError(
                f"step {self.done}: the loss is not finite; begin anew with a lower --lr, or, "
                "where it may change, resume from the last checkpoint with one"
            )
        return dict(zip(values, means, strict=True)), wish > 0

    def _save(self, task: Task) -> None:
        if self.here.is_main:
            tensors, values = task.state()
            save_checkpoint(self.folder / CHECKPOINT, tensors, {**values, "step": self.done})

    def _resume(self, task: Task) -> None:
        path = self.folder / CHECKPOINT
        if has_checkpoint(path):
            tensors, values = load_checkpoint(path)
            self.done = int(values.pop("step"))
            task.restore(tensors, values)
        self.here.barrier()  # nobody writes before all have read


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of a step's random numbers, 63 bits, independent of every other step's."""
    # a seed sequence ignores trailing zeros, so rank 0 must not be one
    mixed = np.random.SeedSequence([seed, step, 1 + rank]).generate_state(1, np.uint64)
    return int(mixed[0] >> np.uint64(1))


def check_folder(folder: Path, kind: type[Any]) -> None:
    """Refuse, before any work, a folder that holds something else than a run of these options.

    Raises:
        InputError: it is a file, or is not empty and has no `options.json` of the class `kind`.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not the folder of a run; choose another name")
    if (folder / "options.json").exists():
        from_json(kind, folder / "options.json")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no training run; choose another folder")


def check_fixed(folder: Path, options: Any, fixed: Sequence[str]) -> None:
    """Refuse to continue a run with options that would make it another run.

    Raises:
        InputError: naming the first flag that differs from the run's own.
    """
    before = from_json(type(options), folder / "options.json")
    for name in fixed:
        old, new = getattr(before, name), getattr(options, name)
        if old != new:
            raise InputError(
                f"{folder}: was started with {flag(name)} {_shown(old)}, not {_shown(new)};"
                " give that again, or another -o, or --overwrite to begin anew"
            )


def _shown(value: Any) -> str:
    return ", ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)


def _forget(folder: Path) -> None:
    for name in ("checkpoint", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("options.json", "metrics.jsonl", "report.json", "report.html"):
        (folder / name).unlink(missing_ok=True)


def _own_random_state(device: torch.device) -> Any:
    """Give torch's random state back as it was when the run ends."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)
