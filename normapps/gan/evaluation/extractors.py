"""Extractors: the networks whose features two sets of pictures are compared by.

Each has a name and a hash, because a score without them means nothing. Only `inception.py`'s
may call its Fréchet distance FID.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...engine.device import evaluating, place, resolve_device
from ...errors import InputError
from ...models.classifier import classifier_name
from ...models.folder import WEIGHTS, read_manifest
from ...models.load import OpenedModel, find_model, open_model
from ...models.outputs import logits_of
from ...models.shipped import list_shipped
from .provenance import place_words
from .resizing import describe, resize

INCEPTION = "inception:"
LITE0 = "lite0"

_LUMA = (0.299, 0.587, 0.114)


class Extractor(Protocol):
    """What turns pictures into features.

    Attributes:
        name: for people, with whose weights.
        sha256: of the weights, 64 hexadecimal digits.
        size: height and width that it sees, pixels.
        resizer: a name of `options.RESIZERS`.
        is_fid: its Fréchet distance is the FID, its classifier score the Inception score.
    """

    name: str
    sha256: str
    size: tuple[int, int]
    resizer: str
    is_fid: bool

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features, and logits if it has a classifier.

        Args:
            x: (N, 1 or 3, H, W) uint8 on any device.

        Returns:
            (N, D) and (N, classes) float32 on the CPU.
        """
        ...

    def describe_resizer(self, given: tuple[int, int]) -> str:
        """Say in words what is done to pictures of a height and width."""
        ...


class ModelExtractor:
    """Any classifier: its features are what its last linear layer takes.

    Of a network without a linear layer the features are what it returns, and there are no logits.
    The whole picture is squashed to the network's size, without a crop.

    Args:
        opened: the network; it is moved to `device`.
        sha256: of its weights; None hashes them.
        device: where it runs.
        resizer: `bicubic` or `tf1`.

    Attributes:
        name, sha256, size, resizer, is_fid: see `Extractor`.

    Raises:
        InputError: the network takes neither RGB nor grey.
    """

    is_fid = False

    def __init__(
        self,
        opened: OpenedModel,
        sha256: str | None = None,
        device: torch.device | None = None,
        resizer: str = "bicubic",
    ) -> None:
        self.device = device or torch.device("cpu")
        self.preprocessing = opened.preprocessing
        if self.preprocessing.channels not in (1, 3):
            raise InputError(
                f"{opened.name}: takes {self.preprocessing.channels} channels, not 1, 3"
            )
        self.sha256 = sha256 or weights_hash(opened.model)
        self.model = place(opened.model, self.device)
        self.name, self.resizer = f"{opened.name}, {opened.weights}", resizer
        self.size = self.preprocessing.size

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and logits; see `Extractor`."""
        kept: list[Tensor] = []
        layer = self._classifier()
        hook = layer.register_forward_pre_hook(_keeping(kept)) if layer is not None else None
        try:
            with evaluating(self.model):
                output = self.model(self._input(x))
        finally:
            if hook is not None:
                hook.remove()
        if not kept:
            return logits_of(output).float().cpu(), None
        return _flat(kept[0]).float().cpu(), logits_of(output).float().cpu()

    def describe_resizer(self, given: tuple[int, int]) -> str:
        """Say in words what is done to pictures of a height and width."""
        return describe(self.resizer, given, self.size)

    def _classifier(self) -> nn.Module | None:
        try:
            return self.model.get_submodule(classifier_name(self.model))
        except InputError:
            return None

    def _input(self, x: Tensor) -> Tensor:
        x = in_channels(x.to(self.device), self.preprocessing.channels)
        mean, std = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (resize(x, self.size, self.resizer) / 255 - mean) / std


def open_extractor(
    spec: str, device: str = "auto", *, resizer: str = "auto", other_weights: bool = False
) -> Extractor:
    """Open what a score is measured by.

    Args:
        spec: `inception:FILE`, `lite0`, or a MODEL as `models.load.open_model` takes it: a shipped
            network, a model folder, a network of a library (random weights are told in its name).
        device: where it runs.
        resizer: a name of `options.RESIZERS`; `auto` is what the extractor's scores are known by.
        other_weights: take an Inception file of another hash, under another name.

    Raises:
        InputError: nothing of that name, weights that do not fit or have another hash, or a
            package that is missing.
    """
    if spec in ("", INCEPTION):
        raise InputError(
            f"--extractor {spec}: names nothing; give {INCEPTION}FILE, lite0 or a MODEL"
        )
    where = resolve_device(device)
    if spec.startswith(INCEPTION):
        from .inception import open_inception

        chosen = "tf1" if resizer == "auto" else resizer
        path = Path(spec.removeprefix(INCEPTION)).expanduser()
        return open_inception(path, where, resizer=chosen, other_weights=other_weights)
    if other_weights:
        raise InputError(f"--other-weights: belongs to {INCEPTION}FILE, not to {spec}")
    opened, known = _opened(spec)
    return ModelExtractor(opened, known, where, "bicubic" if resizer == "auto" else resizer)


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a network's names and values, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def in_channels(x: Tensor, channels: int) -> Tensor:
    """Turn pictures of 1 or 3 channels into 1 (ITU-R 601 luma, float) or 3 (the grey thrice).

    Raises:
        InputError: pictures of another number of channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise InputError(f"pictures are {tuple(x.shape)}; they must be (N, 1 or 3, H, W)")
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    luma = torch.tensor(_LUMA, device=x.device)[:, None, None]
    return (x.float() * luma).sum(1, keepdim=True)


def _opened(spec: str) -> tuple[OpenedModel, str | None]:
    if spec == LITE0:
        from ...models.lite0 import open_lite0

        return open_lite0(), None
    found = find_model(spec)
    opened = open_model(spec)
    if not isinstance(found, Path):
        return opened, None
    # whoever reads a score has the name and the hash to go by, no folder of this machine
    name = spec if spec in list_shipped() else f"model folder {place_words(spec)}"
    kind, _, place = opened.weights.partition("weights of ")
    weights = opened.weights if kind else f"weights of {place_words(place)}"
    named = replace(opened, name=name, weights=weights)
    return named, read_manifest(found).sha256.get(WEIGHTS)


def _keeping(kept: list[Tensor]) -> Any:
    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(inputs[0])

    return keep


def _flat(x: Tensor) -> Tensor:
    """Features (N, D) of a classifier's input, which a convolution takes as a map."""
    return x.mean((2, 3)) if x.ndim == 4 else x.flatten(1)
