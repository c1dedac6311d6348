"""An adapted model as a folder, and the way back: the tensors that changed, as they were."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_path, sha256
from ..measure.report import HTML, JSON
from ..models.folder import (
    MANIFEST,
    WEIGHTS,
    load_model,
    read_manifest,
    save_model,
    write_weights,
)
from ..models.load import OpenedModel
from ..models.preprocessing import Preprocessing
from ..norm.nesting import detached_copy

UNDO, POPULATION = "undo.safetensors", "population.safetensors"
FORMAT = {"format": "normapps-undo", "version": "1"}


def changes(placed: nn.Module, adapted: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that an adaptation changed, for the original model.

    What did not change keeps every bit of the original, also where a copy of lower precision was
    adapted.

    Args:
        placed: what was adapted, as it was.
        adapted: the same after it.
        original: whose dtypes the result has, on the CPU.

    Raises:
        InputError: an adapted tensor has another name or shape, or is not finite.
    """
    before, after, own = (model.state_dict() for model in (placed, adapted, original))
    if before.keys() != after.keys():
        name = min(before.keys() ^ after.keys())
        raise InputError(f"{name}: is in one of the two only, the model and its adapted copy")
    found = {}
    for name, value in after.items():
        if not torch.equal(value, before[name]):
            found[name] = value.detach().to("cpu", own[name].dtype)
            if not bool(torch.isfinite(found[name]).all()):
                raise InputError(
                    f"{name}: is not finite after adapting; take a smaller step, larger batches,"
                    " or another --method"
                )
    return found


def save_adapted(
    out: str | os.PathLike[str],
    opened: OpenedModel,
    changed: Mapping[str, Tensor],
    entry: Mapping[str, Any],
    *,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
    complete: Callable[[Path], object] | None = None,
) -> Path:
    """Write the adapted model's folder with what takes the change back; all of it or nothing.

    Args:
        out: the folder.
        opened: the model before, on the CPU; it stays as it is.
        changed: tensors by name.
        entry: what the history says of it, JSON values.
        preprocessing: what pictures went through; the model's own by default.
        overwrite: replace an older model folder, and its reports.
        complete: writes further files into the folder.

    Raises:
        InputError: as `save_model`.
    """
    adapted = detached_copy(opened.model)
    put_(adapted, changed)

    def finish(folder: Path) -> None:
        for name in (UNDO, POPULATION, JSON, HTML):  # those of an older adaptation
            (folder / name).unlink(missing_ok=True)
        _write_undo(folder, opened.model, changed)
        if complete is not None:
            complete(folder)

    return save_model(
        out,
        adapted,
        builder=opened.source["builder"],
        arguments=opened.source["arguments"],
        preprocessing=(preprocessing or opened.preprocessing).to_json(),
        history=[*opened.history, dict(entry)],
        overwrite=overwrite,
        complete=finish,
    )


def undo(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Bring back the model that a folder's adaptation began with, to the bit.

    `model.safetensors` has its old bytes then, which is checked; the history says that it was
    undone. The population and the report stay.

    Returns:
        The names of the tensors that were brought back.

    Raises:
        InputError: there is nothing to undo, or the folder is damaged or changed; it is as it was
            then.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    expected, tensors = _read_undo(path)
    model = load_model(path)
    put_(model, tensors, path / UNDO)

    def finish(temporary: Path) -> None:
        (temporary / UNDO).unlink()
        if sha256(temporary / WEIGHTS) != expected:
            raise InputError(
                f"{path / WEIGHTS}: other tensors than those of the adaptation have changed since,"
                f" so that {UNDO} does not lead back"
            )

    save_model(
        path,
        model,
        **{key: getattr(manifest, key) for key in ("builder", "arguments", "preprocessing")},
        history=[*manifest.history, {"undone": _last_adaptation(manifest.history)}],
        overwrite=True,
        complete=finish,
    )
    return tuple(tensors)


@torch.no_grad()
def put_(model: nn.Module, tensors: Mapping[str, Tensor], path: Path | None = None) -> None:
    """Copy tensors into a model's state by name; `path` is named where one does not fit."""
    state = model.state_dict()
    for name, value in tensors.items():
        if name not in state or state[name].shape != value.shape:
            raise InputError(f"{path or name}: {name} does not fit the model; copy it again")
        state[name].copy_(value)


def as_entry(method: str, options: Any, **facts: Any) -> dict[str, Any]:
    """Return what a history says of an adaptation: method, options that were chosen, facts."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    chosen = {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if value != defaults[name] and name not in ("overwrite", "method")
    }
    return {"adapted": method, "options": json.loads(json.dumps(chosen, default=str))} | facts


def _last_adaptation(history: Any) -> Any:
    entries = [each for each in history if isinstance(each, Mapping) and "adapted" in each]
    return entries[-1]["adapted"] if entries else "adaptation"


def _write_undo(folder: Path, original: nn.Module, changed: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    state = original.state_dict()
    old = {name: state[name].detach().cpu().contiguous().clone() for name in changed}
    weights = folder / f".{WEIGHTS}"
    write_weights(weights, original)
    content = json.dumps({"sha256": sha256(weights)})
    weights.unlink()
    with atomic_path(folder / UNDO) as temporary:
        save_file(old, temporary, {**FORMAT, "undo": content})


def _read_undo(folder: Path) -> tuple[str, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    path = folder / UNDO
    if not path.is_file():
        raise InputError(f"{folder}: has nothing to undo, no {UNDO}; `adapt run` writes one")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if {key: metadata.get(key) for key in FORMAT} != FORMAT:
            raise ValueError("another kind of file")
        return str(json.loads(metadata["undo"])["sha256"]), tensors
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is damaged ({error}); {folder / MANIFEST} says what the model came from"
        ) from error
