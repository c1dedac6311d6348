"""The networks that come with the package, and weights that somebody downloaded.

Listing, cards and hashes need no torch.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from .folder import MANIFEST, WEIGHTS, read_manifest, read_safetensors, verify

if TYPE_CHECKING:
    from torch import Tensor

CARD = "README.md"
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts store the weights among other things."""

CLASSIC = {
    "wct16": "add its authors' files: normapps models add wct16 5SE.pth 5SD.pth … 1SD.pth",
    "vgg-adain": "add its authors' files: normapps models add vgg-adain vgg_normalised.pth "
    "decoder.pth; or train a decoder: normapps style train --model vgg-adain",
}
"""Names that people look for, whose weights are not shipped, and how to get each."""


def list_shipped() -> tuple[str, ...]:
    """Return the names of the networks that come with the package, sorted."""
    return tuple(sorted(path.parent.name for path in _root().glob(f"*/{MANIFEST}")))


def shipped_folder(name: str) -> Path:
    """Return the model folder of a network that comes with the package.

    Raises:
        InputError: there is none of that name; the nearest one is suggested.
    """
    if name not in list_shipped():
        raise unknown("model", name, list_shipped())
    return _root() / name


def card(name: str) -> str:
    """Return a model's card, Markdown: what it is, its data, recipe and limits.

    Args:
        name: of a shipped or stored model, or a model folder. One that a command trained has no
            card of its own; its manifest says what it is.

    Raises:
        InputError: there is no such model, or its card cannot be read.
    """
    folder = resolve_model(name)
    path = folder / CARD
    if not path.exists():
        return _plain_card(name, folder)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _plain_card(name: str, folder: Path) -> str:
    manifest = read_manifest(folder)
    steps = [step for step in manifest.history if isinstance(step, Mapping)]
    facts = [f"- {key}: {value}" for step in steps for key, value in step.items()]
    return "\n".join([f"# {name}", "", f"A model of builder {manifest.builder}.", "", *facts, ""])


def parameter_count(folder: str | os.PathLike[str]) -> int:
    """Count the numbers in a model folder's weights, buffers included, without reading them.

    Raises:
        InputError: the weight file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, "numpy") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: is no safetensors file ({error}); copy it again") from error


def resolve_model(name_or_folder: str | os.PathLike[str]) -> Path:
    """Return the model folder of a shipped network's name, of the user's own, or the folder given.

    A name goes before a folder of the same name, which `./name` reaches.

    Raises:
        InputError: it is none of them; the nearest name is suggested.
    """
    name = os.fspath(name_or_folder)
    if name in list_shipped():
        return shipped_folder(name)
    from .store import list_stored, stored_folder

    if name in list_stored():
        return stored_folder(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.name != name:
        raise InputError(f"{name}: no such model folder")
    if name in CLASSIC:
        raise InputError(f"model '{name}' is not here yet; {CLASSIC[name]}")
    raise unknown("model", name, (*list_shipped(), *list_stored()))


def read_weights(path: str | os.PathLike[str], sha256: str | None = None) -> dict[str, Tensor]:
    """Read a state dict that somebody else made, to the CPU, running no code of the file.

    Args:
        path: safetensors by its suffix; anything else is read as PyTorch's own format with
            `weights_only=True`, and the weights are also found under `state_dict` or `model`.
        sha256: 64 hexadecimal digits that the file must have.

    Raises:
        InputError: the file is missing, differs from `sha256`, is damaged, needs pickled code,
            or holds something else than named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such weight file")
    if sha256 is not None:
        verify(file, sha256)
    values = read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    return _state_dict(file, values)


def _root() -> Path:
    return Path(import_module("normapps.pretrained").__path__[0])


def _read_torch(file: Path) -> Any:
    import argparse

    import torch

    try:
        # the options that timm's and others' training scripts store: names and plain values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, ValueError, RuntimeError, pickle.PickleError) as error:
        raise InputError(
            f"{file}: is no PyTorch file of plain tensors, or is damaged (pickled objects are "
            "refused); copy it again, or save its state dict as safetensors"
        ) from error


def _state_dict(file: Path, values: Any) -> dict[str, Tensor]:
    import torch

    for wrapper in WRAPPERS:
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not values:
        raise InputError(f"{file}: holds no state dict but {type(values).__name__}")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{file}: entry {key!r} is {type(value).__name__}, not a named tensor")
    return dict(values)
