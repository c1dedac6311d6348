"""Folders that are run as they are: a network and a versioned `model.json`. Loads no torch.

Mostly `model.onnx`, for onnxruntime; `program_folder.py` has the others.

Whoever gets such a folder needs neither the network's code nor torch:

    model = normapps.OnnxModel("resnet18-int8")
    images = model.prepare(["cat.jpg", "dog.jpg"])
    classes = model.run(images).argmax(1)
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from ..errors import InputError
from ..files import sha256, write_text
from .folder import (
    MANIFEST,
    ONNX_FORMAT,
    PROGRAM_FORMAT,
    check_target,
    read_json,
    replaced_folder,
    verify,
)

if TYPE_CHECKING:
    from ..engine.ort import Session
    from .program import Program

Picture: TypeAlias = "str | os.PathLike[str] | np.ndarray"

VERSION = 1
NETWORK = "model.onnx"
NETWORKS = {ONNX_FORMAT: NETWORK, PROGRAM_FORMAT: "model.pt2"}
"""The network's file, by the format of the folder."""


@dataclass(frozen=True)
class OnnxManifest:
    """What `model.json` of such a folder says.

    Attributes:
        name: the network in words, such as `timm resnet18`.
        source: builder and arguments of the network that was exported.
        input_size: channels, height and width of a picture.
        output: number of the output that `run` returns, the logits of a classifier.
        num_classes: of a classifier; None of any other network.
        precision: `int8` or `float32`.
        preprocessing: what a picture goes through, as `Preprocessing.to_json` has it.
        history: what was done to the network, JSON values, oldest first.
        options: how it was quantized.
        sha256: of the folder's files, by their names.
        onnxruntime: version by which the float file was measured, and this one if it is ONNX.
        verdict: of the report beside it.
    """

    name: str
    source: Mapping[str, Any]
    input_size: Sequence[int]
    output: int = 0
    num_classes: int | None = None
    precision: str = "float32"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    onnxruntime: str = ""
    verdict: str = ""


def save_onnx(
    folder: str | os.PathLike[str],
    network: Path,
    manifest: OnnxManifest,
    *,
    overwrite: bool = False,
    complete: Callable[[Path], object] | None = None,
) -> Path:
    """Write a folder and return its path; either all of it appears or nothing changes.

    Args:
        folder: made with its parents; with `overwrite` an older one of this kind is replaced,
            files in it that are not ours stay.
        network: the file, ONNX or by its suffix `.pt2` a program; it is moved.
        manifest: what is known of it, but for the hash.
        complete: called with the folder, still under another name, to check it and add files.

    Raises:
        InputError: as `check_onnx_target`, or it cannot be written.
    """
    target = Path(folder)
    check_onnx_target(target, overwrite)
    kind = next(each for each, file in NETWORKS.items() if Path(file).suffix == network.suffix)
    with replaced_folder(target) as temporary:
        for old in NETWORKS.values():
            (temporary / old).unlink(missing_ok=True)
        file = temporary / NETWORKS[kind]
        shutil.move(network, file)
        said = dataclasses.asdict(dataclasses.replace(manifest, sha256={file.name: sha256(file)}))
        values = {"format": kind, "version": VERSION} | said
        write_text(temporary / MANIFEST, json.dumps(values, indent=2) + "\n")
        if complete is not None:
            complete(temporary)
    return target


def check_onnx_target(folder: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Find out, before long work, whether `save_onnx` would take a folder.

    Raises:
        InputError: it is a file, exists already, cannot be made, or holds something else, such as
            the very model that is to be quantized.
    """
    check_target(folder, overwrite)
    path = Path(folder) / MANIFEST
    if path.is_file() and not is_onnx_folder(folder):
        raise InputError(f"{folder}: is no ONNX folder, and so is not replaced; name another")


def is_onnx_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder's `model.json` says that it is one of ours that is run as it is."""
    try:
        values = read_json(Path(folder) / MANIFEST)
    except InputError:
        return False
    return isinstance(values, dict) and values.get("format") in NETWORKS


def read_onnx_manifest(
    folder: str | os.PathLike[str], wanted: str = ONNX_FORMAT, kind: str = "ONNX model"
) -> OnnxManifest:
    """Read `model.json` of such a folder; the network is not looked at.

    Args:
        folder: of the network.
        wanted: its format.
        kind: that in words.

    Raises:
        InputError: the folder or file is missing, is of another kind, or of a newer version.
    """
    path = Path(folder) / MANIFEST
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != wanted:
        raise InputError(f'{path}: is no {kind} ("format" is not "{wanted}")')
    if values.get("version") != VERSION:
        raise InputError(
            f"{path}: version {values.get('version')!r} is not {VERSION}, which this normapps"
            " reads; upgrade it"
        )
    return _parsed(path, values)


class RunModel:
    """A network of a folder, with what it takes to show it pictures.

    Attributes:
        manifest: what its `model.json` says.
        session: what runs it, for other outputs than the first.
    """

    def __init__(self, manifest: OnnxManifest, session: Session | Program) -> None:
        self.manifest = manifest
        self.session = session

    def prepare(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """Make the network's input of pictures.

        Args:
            pictures: one or several: a file, or (H, W, 3) uint8 sRGB of any size.

        Returns:
            (N, C, height, width) float32, resized, cut and normalized.

        Raises:
            InputError: a picture that cannot be read; the line names it. Or no picture.
        """
        from ..data.images import read_image
        from .preprocessing import Preprocessing

        several = _several(pictures)
        if not several:
            raise InputError("no pictures given; give one file or array at least")
        prepare = Preprocessing.from_json(self.manifest.preprocessing).to_array
        pixels = (
            each if isinstance(each, np.ndarray) else read_image(each, flag="").pixels
            for each in several
        )
        return np.stack([prepare(each) for each in pixels])

    def run(self, images: np.ndarray) -> np.ndarray:
        """Return the network's answers, (N, num_classes) float32 logits of a classifier.

        Args:
            images: (N, C, H, W) float32 of `manifest.input_size`, as `prepare` returns them.

        Raises:
            InputError: another shape.
        """
        wanted = tuple(self.manifest.input_size)
        if images.ndim != 4 or images.shape[1:] != wanted:
            raise InputError(
                f"images are {images.shape}; they must be (N, {', '.join(map(str, wanted))})"
            )
        name = self.session.output_names[self.manifest.output]
        return self.session.run(images.astype(np.float32, copy=False), [name])[0]


def _several(pictures: Picture | Sequence[Picture]) -> list[Picture]:
    is_array = isinstance(pictures, np.ndarray) and pictures.ndim == 3
    is_one = is_array or isinstance(pictures, str | os.PathLike)
    return [cast("Picture", pictures)] if is_one else list(cast("Sequence[Picture]", pictures))


class OnnxModel(RunModel):
    """A network in a folder, run by onnxruntime on the CPU.

    Args:
        folder: that `normapps quantize` wrote; its hash is checked.
        threads: threads that share an operator; onnxruntime's choice, one a core, where None.

    Raises:
        NormappsError: onnxruntime is not installed.
        InputError: the folder is missing, damaged, of another kind or of a newer version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, threads: int | None = None) -> None:
        from ..engine.ort import open_session

        manifest = read_onnx_manifest(folder)
        network = Path(folder) / NETWORK
        verify(network, manifest.sha256[NETWORK])
        super().__init__(manifest, open_session(network, threads=threads))


def _parsed(path: Path, values: Mapping[str, Any]) -> OnnxManifest:
    kinds = {"name": str, "source": dict, "input_size": list, "sha256": dict}
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise InputError(f'{path}: "{name}" is missing or is no {kind.__name__}')
    network = NETWORKS[values["format"]]
    if not isinstance(values["sha256"].get(network), str):
        raise InputError(f"{path}: lists no sha256 of {network}")
    known = {each.name for each in dataclasses.fields(OnnxManifest)}
    return OnnxManifest(**{name: values[name] for name in values.keys() & known})
