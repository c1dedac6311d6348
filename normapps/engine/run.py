"""The state of a run on disk: options, metrics, checkpoints that resume exactly.

A run folder holds `options.json`, `metrics.jsonl` and `checkpoint/`. Checkpoints are safetensors
(every tensor of model, average and optimizer) with the rest as JSON in the file's metadata; the
previous one is kept until the next is whole.
"""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import InputError
from ..files import atomic_path


def save_checkpoint(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values into one safetensors file, atomically.

    The file it replaces stays beside it as `previous`.
    """
    with atomic_path(path) as temporary:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata={"values": json.dumps(values)})
        if path.exists():
            path.replace(path.with_stem("previous"))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote; the previous file where the newest is damaged.

    Raises:
        InputError: neither can be read.
    """
    for candidate in (path, path.with_stem("previous")):
        try:
            with safe_open(candidate, "pt") as file:
                values = json.loads(file.metadata()["values"])
                return {name: file.get_tensor(name) for name in file.keys()}, values  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue
    raise InputError(f"{path}: no checkpoint that can be read; start the run again")


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint, or a previous one, to resume from."""
    return path.exists() or path.with_stem("previous").exists()


def flatten(prefix: str, state: dict[str, Any]) -> dict[str, Tensor]:
    """Name the tensors of a module's state dict `prefix.key`."""
    return {f"{prefix}.{key}": value for key, value in state.items()}


def unflatten(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `flatten`: the tensors under one prefix."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Name the tensors of an optimizer's state `optimizer.INDEX.KEY`, and its counters.

    Counters that are plain integers become tensors of them (timm's AdamP); one that a group keeps
    for its parameters is `optimizer.group.INDEX` (timm's Lamb).
    """
    whole = optimizer.state_dict()
    tensors = {
        f"optimizer.{i}.{key}": torch.as_tensor(value)
        for i, part in whole["state"].items()
        for key, value in part.items()
    }
    steps = {i: group["step"] for i, group in enumerate(whole["param_groups"]) if "step" in group}
    return tensors | {f"optimizer.group.{i}": torch.as_tensor(step) for i, step in steps.items()}


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load what `optimizer_tensors` named; parameter groups keep the present options.

    Fused optimizers walk through memory, so a moment gets its parameter's strides again.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for name, tensor in unflatten("optimizer", tensors).items():
        index, key = name.split(".", 1)
        if index == "group":
            groups[int(key)]["step"] = _counter(tensor)
            continue
        like = parameters[int(index)]
        fits = tensor.shape == like.shape and tensor.is_floating_point()
        kept = torch.empty_like(like).copy_(tensor) if fits else _counter(tensor)
        state.setdefault(int(index), {})[key] = kept
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _counter(tensor: Tensor) -> Tensor | int:
    """A counter as the optimizer had it: of the integral ones each was a plain integer."""
    return tensor.clone() if tensor.is_floating_point() else int(tensor)


class StopRequest:
    """Turns the first Ctrl-C, or a SIGTERM, into a wish to stop at the end of a step.

    A checkpoint taken there resumes exactly; a second Ctrl-C interrupts at once. Outside the main
    thread signals stay as they are.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Metrics:
    """`metrics.jsonl`, and TensorBoard beside it where that is installed.

    Args:
        folder: the run folder.
        step: entries from this step on are dropped, so that a resumed run repeats none.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] < step]
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._board = _tensorboard(folder, step)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("}\n")]


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the average of a model's parameters: average ← d·average + (1−d)·model.

    The decay d is min(decay, (1+step)/(10+step)), so that the start is forgotten soon.
    """
    keep = min(decay, (1 + step) / (10 + step))
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - keep)
