"""Opening a translator, whatever trained it, and giving it pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ...data.images import read_image
from ...data.picture import Picture, fit, fitted_size, resize
from ...engine.device import evaluating, place, resolve_device
from ...errors import InputError, UsageError
from ...models.folder import MANIFEST, WEIGHTS, Manifest, load_model, read_manifest
from ...models.translator import AdalinGenerator
from .options import TranslateRunOptions
from .strips import translate
from .unpaired import to_bytes, to_floats

MOST = 2**25
"""Pixels of the largest picture that is translated, unless --max-pixels says otherwise."""
_BYTES = 210
"""Of memory a pixel, estimated; `benchmarks/translate.py --memory` prints what is measured."""
_DOMAINS = ("source", "target")


class Translator(Protocol):
    """What turns pictures of one domain, or label maps, into pictures of another.

    Attributes:
        fingerprint: SHA-256 of its weights.
        trained_at: side of the pictures that it learned from, in pixels; 0 where not known.
    """

    fingerprint: str
    trained_at: int

    def file(self, source: Path | BinaryIO, options: TranslateRunOptions) -> Picture:
        """Read one file, of any size, and translate it.

        Args:
            source: a path, or a binary stream that is read to its end.
            options: size and limits of the job.

        Raises:
            InputError: it cannot be read, or is too large.
        """


_OPENERS = {
    "adalin-generator": "normapps.gan.translation.run:PictureTranslator",
    "spade-generator": "normapps.gan.translation.map_translator:MapTranslator",
}
"""Builder of a model folder → `module:callable` that opens the folder, given its manifest and a
device, as a `Translator`."""


def open_translator(spec: str, *, back: bool = False, device: str = "auto") -> Translator:
    """Open what a training left.

    Args:
        spec: a run folder, or a model folder of a translator.
        back: of a run without pairs: the generator from the target to the source.
        device: as `--device` has it.

    Raises:
        InputError: there is nothing that translates.
        UsageError: `back` with something else than a run without pairs.
    """
    folder = _folder(Path(spec), back)
    manifest = read_manifest(folder)
    if manifest.builder not in _OPENERS:
        raise InputError(
            f"{folder}: is a {manifest.builder}, which translates nothing; name what "
            "normapps translate train has made"
        )
    module, name = _OPENERS[manifest.builder].split(":")
    make: Callable[[Path, Manifest, torch.device], Translator] = getattr(
        import_module(module), name
    )
    return make(folder, manifest, resolve_device(device))


class PictureTranslator:
    """A `Translator` between domains of pictures: an `AdalinGenerator` on a device.

    Args:
        folder: of the model.
        manifest: the folder's.
        device: where it computes.

    Attributes:
        fingerprint: SHA-256 of its weights.
        generator: the network, in evaluation mode.
        trained_at: side of the pictures that it learned from, in pixels; 0 where not known.
        places: where the pictures of its `source` and `target` lay; empty where not known.
        history: what was told of its training last.
        device: where it computes.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self.generator = place(cast(AdalinGenerator, load_model(folder)), device)
        self.fingerprint = manifest.sha256[WEIGHTS]
        self.trained_at = int(manifest.preprocessing.get("size", 0))
        self.places = {key: str(manifest.preprocessing.get(key, "")) for key in _DOMAINS}
        self.history = dict(manifest.history[-1]) if manifest.history else {}
        self.device = device

    def file(self, source: Path | BinaryIO, options: TranslateRunOptions) -> Picture:
        """Read a picture and translate it; see `Translator`."""
        picture = read_image(source, max_pixels=options.max_pixels)
        return self(picture, options.size, options.max_pixels or MOST)

    def __call__(self, picture: Picture, size: int | None = None, most: int = MOST) -> Picture:
        """Translate a picture of any size, its alpha kept.

        Args:
            picture: as read.
            size: the long side is brought down to so many pixels first.
            most: pixels that may be left then.

        Raises:
            InputError: it has more than `most` pixels.
        """
        small = shrunk(picture, size)
        _check_size(small, most)
        x = to_floats(torch.from_numpy(np.ascontiguousarray(small.pixels)).permute(2, 0, 1)[None])
        pixels = to_bytes(self.translate(x))[0].permute(1, 2, 0).cpu().numpy()
        return dataclasses.replace(small, pixels=np.ascontiguousarray(pixels))

    def translate(self, x: Tensor) -> Tensor:
        """Translate (1, C, H, W) floats in [−1, 1], on any device; the same size comes out."""
        with evaluating(self.generator):
            return translate(self.generator, x.to(self.device))


def shrunk(picture: Picture, size: int | None) -> Picture:
    """Return the picture with its long side brought down to `size` pixels, alpha too."""
    width, height = picture.size
    if size is None or max(width, height) <= size:
        return picture
    alpha = picture.alpha
    if alpha is not None:
        alpha = resize(alpha, *fitted_size(width, height, size))
    return dataclasses.replace(picture, pixels=fit(picture.pixels, size), alpha=alpha)


def _check_size(picture: Picture, most: int) -> None:
    width, height = picture.size
    count = width * height
    if count > most:
        long_side = int(max(width, height) * (most / count) ** 0.5)
        raise InputError(
            f"{width}×{height} pixels are more than the limit of {most}; --size {long_side}, or "
            f"--max-pixels {count}, which needs about {count * _BYTES / 1e9:.2g} GB of memory"
        )


def _folder(place: Path, back: bool) -> Path:
    """Return the model folder that a run or a model folder stands for."""
    if (place / MANIFEST).is_file():
        if back:
            raise UsageError(f"--back: {place} is one model, not a run; name its generator-back")
        return place
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; name a run of normapps translate train")
    if not (place / "options.json").is_file():
        raise InputError(f"{place}: is no run of normapps translate train, and no model folder")
    folder = place / ("generator-back" if back else "generator")
    if (folder / MANIFEST).is_file():
        return folder
    if back and (place / "generator" / MANIFEST).is_file():
        raise UsageError(f"--back: {place} has no way back; it was trained on pairs")
    raise InputError(
        f"{place}: has no generator yet; normapps translate train --resume -o {place} goes on"
    )
