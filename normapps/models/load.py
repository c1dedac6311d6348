"""Open any network: a model folder, a shipped one, timm, torchvision, or the user's own.

What is opened knows how it was made, so that whoever edits it can save it as a model folder that
opens again: `save_model(folder, opened.model, **opened.source, preprocessing=..., history=...)`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from ..errors import InputError, UsageError, unknown
from .checkpoint import load_checkpoint
from .folder import MANIFEST, build, load_model, read_manifest
from .options import ModelOptions
from .preprocessing import Preprocessing
from .shipped import list_shipped, shipped_folder

LIBRARIES = ("timm", "torchvision")
RANDOM, MADE = "random weights", "weights as its code makes them"
"""What `OpenedModel.weights` begins with where nothing was loaded; a factory is not asked."""

_OF_LATENTS = ("sngan-generator",)
"""Builders of networks whose input is no picture."""

_FACTORY = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


@dataclass(frozen=True)
class OpenedModel:
    """A network and where it comes from.

    Attributes:
        model: on the CPU, in eval mode.
        preprocessing: what it expects of a picture.
        source: JSON values `builder` and `arguments` that make the architecture again.
        is_random: nothing that we loaded gave its weights; a factory may have loaded its own.
        name: where it comes from, such as `timm resnet18` or `model folder out/dslim`.
        weights: whose weights it has, such as `pretrained weights` or `random weights (seed 0)`.
        history: what was done to it, JSON values for `save_model`, oldest first.
        remedy: the options that give weights to a network that has random ones.
    """

    model: nn.Module
    preprocessing: Preprocessing
    source: Mapping[str, Any]
    is_random: bool
    name: str
    weights: str
    history: tuple[Any, ...] = ()
    remedy: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs by number, as the last training tells; empty where none does."""
        told = [each for each in self.history if isinstance(each, Mapping) and each.get("classes")]
        return tuple(map(str, told[-1]["classes"])) if told else ()

    def describe(self) -> str:
        """Say in one line what was opened, and that its weights are random where they are."""
        hint = f": give {self.remedy}" if self.is_random and self.remedy else ""
        return f"{self.name}, {self.weights}{hint}"


def open_model(
    spec: str | os.PathLike[str],
    *,
    pretrained: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> OpenedModel:
    """Open a network by whatever names it; torch's random state is left as it was.

    A `spec` is tried as, in this order: `timm/NAME` or `torchvision/NAME`; a shipped network; a
    model folder (`./NAME` where it has a shipped network's name); `package.module:factory` (a
    function without required arguments, importable as `python -m` would from the current folder);
    a name of timm's; a name of torchvision's.

    Args:
        spec: the network.
        pretrained: take the library's published weights, which may ask the network for them.
        checkpoint: a weight file (safetensors, or PyTorch's format holding nothing but tensors)
            to load strictly.
        num_classes: outputs of the classifier; None takes the checkpoint's or the architecture's.
        seed: of the weights that nothing else gives.

    Raises:
        UsageError: options that contradict each other or the kind of network.
        InputError: nothing of that name (the nearest is suggested), or weights that are missing
            or do not fit.
    """
    found = find_model(spec)
    _check_options(found, pretrained, checkpoint, num_classes)
    if isinstance(found, Path):
        return _open_folder(found, checkpoint, seed)
    source = _with_classes(found, num_classes)
    is_factory = source["builder"] == "factory"
    if checkpoint is not None:
        model, source = _with_checkpoint(found, checkpoint, num_classes, seed)
        weights = f"weights of {os.fspath(checkpoint)}"
    elif pretrained:
        model, weights = _pretrained(source, seed), _pretrained_words(num_classes)
    else:
        model = _build(source, seed)
        weights = f"{MADE if is_factory else RANDOM} (seed {seed})"
    return OpenedModel(
        model.eval(),
        Preprocessing.of(model, source),
        source,
        is_random=checkpoint is None and not pretrained,
        name=_label(source),
        weights=weights,
        history=({"opened": _label(source), "weights": weights},),
        remedy="--checkpoint if they are random" if is_factory else "--pretrained or --checkpoint",
    )


def open_by(spec: str | os.PathLike[str], options: ModelOptions) -> OpenedModel:
    """Open a network with the weights that a command's options name; see `open_model`."""
    return open_model(
        spec,
        pretrained=options.pretrained,
        checkpoint=options.checkpoint,
        num_classes=options.num_classes,
        seed=options.seed,
    )


def find_model(spec: str | os.PathLike[str]) -> Path | dict[str, Any]:
    """Find out what names a network, without making it: see `open_model`.

    Returns:
        A model folder, or `builder` and `arguments`.

    Raises:
        InputError: nothing of that name; the nearest is suggested.
    """
    name = os.fspath(spec)
    library, _, rest = name.partition("/")
    if library in LIBRARIES and rest:
        return _of_library(library, rest)
    if name in list_shipped():
        return shipped_folder(name)
    path = Path(name).expanduser()
    if (path / MANIFEST).is_file():
        return path
    if _FACTORY.fullmatch(name):
        return {"builder": "factory", "arguments": {"factory": name}}
    for library in LIBRARIES:
        if _has(library, name):
            return _of_library(library, name)
    raise _not_found(name, path)


def _not_found(name: str, path: Path) -> InputError:
    from .builders import library_names

    if path.is_dir():
        return InputError(f"{name}: is no model folder, it has no {MANIFEST}")
    if path.suffix.lower() in _WEIGHT_FILES:
        return InputError(f"{name}: is a weight file; name its architecture, and --checkpoint it")
    if path.name != name:
        return InputError(f"{name}: no such model folder")
    return unknown("model", name, [*list_shipped(), *library_names()])


def _has(library: str, name: str) -> bool:
    from . import builders

    return builders.has_timm(name) if library == "timm" else builders.has_torchvision(name)


def _of_library(library: str, name: str) -> dict[str, Any]:
    if not _has(library, name):
        from .builders import library_names

        own = [each for each in library_names() if _has(library, each)]
        raise unknown(f"{library} model", name, own)
    return {"builder": library, "arguments": {"name": name}}


def _check_options(
    found: Path | Mapping[str, Any],
    pretrained: bool,
    checkpoint: str | os.PathLike[str] | None,
    num_classes: int | None,
) -> None:
    if pretrained and checkpoint is not None:
        raise UsageError("--pretrained and --checkpoint: give one of the two")
    if num_classes is not None and num_classes < 0:
        raise InputError(f"--num-classes {num_classes}: must be at least 0")
    if isinstance(found, Path):
        if pretrained:
            raise UsageError(f"--pretrained: {found} is a model folder and has its weights")
        if num_classes is not None:
            raise UsageError(f"--num-classes: {found} is a model folder and has its classifier")
    elif pretrained and found["builder"] == "factory":
        raise UsageError("--pretrained: a factory has no published weights; give --checkpoint")
    elif pretrained and found["builder"] == "torchvision" and num_classes is not None:
        raise UsageError("--pretrained --num-classes: torchvision cannot do both; use timm/NAME")


def _open_folder(path: Path, checkpoint: str | os.PathLike[str] | None, seed: int) -> OpenedModel:
    manifest = read_manifest(path)
    if manifest.builder in _OF_LATENTS:
        raise InputError(
            f"{path}: is a generator, which takes no pictures; see `normapps gan --help`"
        )
    source = {"builder": manifest.builder, "arguments": dict(manifest.arguments)}
    history = tuple(manifest.history)
    if checkpoint is None:
        model = load_model(path)
        weights = _weights_of(history)
    else:
        model, _ = load_checkpoint(lambda _: _build(source, seed), checkpoint)
        weights = f"weights of {os.fspath(checkpoint)}"
        history += ({"weights": weights},)
    return OpenedModel(
        model.eval(),
        _folder_preprocessing(path, manifest.preprocessing, model, source),
        source,
        is_random=weights.startswith((RANDOM, MADE)),
        name=f"model folder {path} ({_label(source)})",
        weights=weights,
        history=history,
        remedy="--checkpoint",
    )


def _weights_of(history: tuple[Any, ...]) -> str:
    """What the youngest entry that tells of weights says of them."""
    said = [each["weights"] for each in history if isinstance(each, Mapping) and "weights" in each]
    return str(said[-1]) if said else "its own weights"


def _folder_preprocessing(
    path: Path, values: Mapping[str, Any], model: nn.Module, source: Mapping[str, Any]
) -> Preprocessing:
    try:
        return Preprocessing.from_json(values) if values else Preprocessing.of(model, source)
    except InputError as error:
        raise InputError(f"{path / MANIFEST}: {error}") from error


def _label(source: Mapping[str, Any]) -> str:
    """A source in words: `timm resnet18`, `… with iternorm`, `slimmed timm resnet18`."""
    builder, arguments = source["builder"], source["arguments"]
    if builder == "converted":
        steps = ", ".join(str(step["to"]) for step in arguments["steps"])
        return f"{_label(arguments['base'])} with {steps}"
    if builder == "slimmed":
        return f"slimmed {_label(arguments['base']).removeprefix('slimmed ')}"
    return " ".join([builder, *filter(None, [arguments.get("name", arguments.get("factory"))])])


def _with_classes(source: Mapping[str, Any], num_classes: int | None) -> dict[str, Any]:
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return {"builder": source["builder"], "arguments": dict(source["arguments"]) | classes}


def _build(source: Mapping[str, Any], seed: int) -> nn.Module:
    return build(source["builder"], source["arguments"], seed=seed)


def _with_checkpoint(
    source: Mapping[str, Any],
    checkpoint: str | os.PathLike[str],
    num_classes: int | None,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    def make(classes: int | None) -> nn.Module:
        return _build(_with_classes(source, classes), seed)

    model, classes = load_checkpoint(make, checkpoint, num_classes)
    return model, _with_classes(source, classes)


def _pretrained(source: Mapping[str, Any], seed: int) -> nn.Module:
    import torch

    from . import builders

    make = builders.timm_model if source["builder"] == "timm" else builders.torchvision_model
    try:
        with _brief_hub(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # for a classifier of other classes
            if source["builder"] == "torchvision":
                _check_reachable(source["arguments"]["name"])
            return make(**source["arguments"], pretrained=True)
    except Exception as error:  # of whichever HTTP client the libraries use
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        short = reason if len(reason) < 120 else f"{reason[:119]}…"
        raise InputError(
            f"{_label(source)}: its pretrained weights are not on this machine and cannot be "
            f"fetched ({short}); give --checkpoint FILE"
        ) from error


@contextmanager
def _brief_hub() -> Iterator[None]:
    """Keep timm's hub from trying for a minute, a line each time, where its host is unknown.

    What lies in its cache is found without asking then, too.
    """
    try:
        from huggingface_hub import constants
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_known(urlsplit(constants.ENDPOINT).hostname)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_reachable(name: str) -> None:
    """Find out whether torch's hub could get a file; it would announce the download before that."""
    from torch.hub import get_dir
    from torchvision.models import get_model_weights

    url = urlsplit(getattr(get_model_weights(name), "DEFAULT").url)  # noqa: B009  not typed
    cached = Path(get_dir(), "checkpoints", Path(url.path).name)
    if not cached.is_file() and not _is_known(url.hostname):
        raise OSError("its host is not known on this machine")


def _is_known(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _pretrained_words(num_classes: int | None) -> str:
    new = "" if num_classes is None else f", classifier of {num_classes} classes as timm adapts it"
    return f"pretrained weights{new}"
