"""The files that onnxruntime needs to stylize, written into a model folder beside its weights.

Both graphs point into `model.safetensors` for their weights (ONNX's external data: a file, an
offset, a length), so the folder grows by some kilobytes and torch and onnxruntime cannot disagree
about the weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InputError
from ...files import sha256, write_text
from ...models.adain_tiny import AdainTiny, moments, numbers_of
from ...models.folder import (
    FORMAT,
    MANIFEST,
    VERSION,
    WEIGHTS,
    check_target,
    load_model,
    read_manifest,
    read_safetensors,
    replaced_folder,
)
from ...models.onnx import Dynamic, check_deploy, to_onnx
from .networks import PixelDecoder, PixelEncoder
from .stylizer import DECODER, ENCODER

_KINDS = {torch.float32: 1, torch.float16: 10}
"""Types of weights that graphs can point to, and ONNX's numbers for them (TensorProto)."""

_PREFIX = "network."
"""Of the names of the stylizer's own weights in the graphs: `PixelEncoder.network`."""


def write_runtime(
    folder: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> float:
    """Make a stylizer's model folder one that `stylize --runtime onnx` takes.

    Args:
        folder: what `style train` wrote, or a shipped stylizer's folder.
        out: the same folder, or a new one, to which the model is copied.
        overwrite: replace older graphs, and another model in `out`.

    Returns:
        The largest difference to torch, relative to the largest value.

    Raises:
        NormappsError: the extra `deploy` is missing.
        InputError: the folder holds no stylizer, or `out` cannot be written.
    """
    check_deploy()
    source, target = Path(folder), Path(out)
    network = load_model(source)
    if not isinstance(network, AdainTiny):
        raise InputError(f"{source}: holds no stylization network; name a file .onnx or .pt2")
    in_place = target.exists() and target.samefile(source)
    if not in_place:
        check_target(target, overwrite)
    elif not overwrite and (target / ENCODER).exists():
        raise InputError(f"{target / ENCODER}: exists already; --overwrite replaces it")
    with replaced_folder(target) as temporary:
        if not in_place:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        worst = max(_write(temporary, *half) for half in _halves(network))
        _add_hashes(temporary)
    return worst


def _halves(
    network: AdainTiny,
) -> list[tuple[str, nn.Module, tuple[Tensor, ...], Dynamic]]:
    """Each half with its file's name, inputs to compare with, and the sizes that are open."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(64, 80, 3, generator=random)
    encoder, decoder = PixelEncoder(network).eval(), PixelDecoder(network).eval()
    with torch.inference_mode():
        features = encoder(pixels)
        numbers = numbers_of(moments(features))
    scales = [
        0.5 + torch.rand(1, width, 1, 1, generator=random)
        for width in (network.width, network.width, network.deep, network.deep)
    ]
    inputs = (*(each.clone() for each in features), *scales, numbers.clone())
    return [
        (ENCODER, encoder, (pixels,), ((0, 1),)),
        (DECODER, decoder, inputs, ((2, 3), (2, 3), (), (), (), (), ())),
    ]


def _write(
    folder: Path, name: str, half: nn.Module, inputs: tuple[Tensor, ...], dynamic: Dynamic
) -> float:
    path = folder / name
    return to_onnx(half, inputs, path, dynamic=dynamic, overwrite=True, finish=_share_weights)


def _share_weights(path: Path) -> None:
    """Replace every weight in a graph that `model.safetensors` beside it holds by its place there.

    Weights stored in half precision are cast when the file is opened, which is exact.
    """
    import onnx

    model = onnx.load(path)
    stored, places = _stored(path.with_name(WEIGHTS))
    casts = []
    for value in model.graph.initializer:
        name = value.name.removeprefix(_PREFIX)
        if name == value.name or name not in stored or stored[name].dtype not in _KINDS:
            continue
        array = stored[name].float().numpy()
        if not np.array_equal(array, onnx.numpy_helper.to_array(value)):
            raise InputError(f"{path.name}: {name} is not as in {WEIGHTS}; report this")
        casts += _point(value, stored[name].dtype, places[name])
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    onnx.save(model, path)


def _point(value: Any, dtype: torch.dtype, place: Mapping[str, str]) -> list[Any]:
    """Let a TensorProto say where its numbers lie; return the cast that it then needs, if any."""
    from onnx import TensorProto, helper

    wanted = value.name
    casts = []
    if dtype != torch.float32:
        value.name = f"{wanted}.stored"
        casts = [helper.make_node("Cast", [value.name], [wanted], to=TensorProto.FLOAT)]
    value.data_type = _KINDS[dtype]
    for numbers in ("raw_data", "float_data"):
        value.ClearField(numbers)
    value.data_location = TensorProto.EXTERNAL
    for key, text in place.items():
        value.external_data.add(key=key, value=text)
    return casts


def _stored(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """Read a safetensors file: its tensors, and where in the file each of them lies."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    places = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            place = {"location": path.name, "offset": str(8 + size + start)}
            places[name] = place | {"length": str(end - start)}
    return read_safetensors(path), places


def _add_hashes(folder: Path) -> None:
    manifest = read_manifest(folder)
    graphs = {name: sha256(folder / name) for name in (ENCODER, DECODER)}
    manifest = dataclasses.replace(manifest, sha256={**manifest.sha256, **graphs})
    values = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(manifest)
    write_text(folder / MANIFEST, json.dumps(values, indent=2) + "\n")
