"""What `model.json` of an int8 folder says: where it is from, and how it was made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ..models.load import OpenedModel
from ..models.onnx_folder import OnnxManifest
from .latency import INT8
from .options import TORCHAO, QuantizeOptions

_NOT_KEPT = ("overwrite", "device")
"""Options that say nothing of the network."""


def given(options: QuantizeOptions) -> dict[str, Any]:
    """Return the options that differ from their defaults, as JSON values."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return {name: value for name, value in _all(options).items() if value != defaults[name]}


def manifest_of(
    opened: OpenedModel,
    options: QuantizeOptions,
    shape: tuple[int, ...],
    output: int,
    num_classes: int | None,
    done: Mapping[str, Any],
) -> OnnxManifest:
    """Return what is known of an int8 network.

    Args:
        opened: the float network.
        options: by which it was quantized.
        shape: (C, H, W) of a picture.
        output: number of the output with the logits.
        num_classes: of a classifier.
        done: what the history says beside the options, JSON values; `verdict` among them.
    """
    import onnxruntime

    entry = {"quantized": INT8, "options": given(options), **done}
    if options.backend == TORCHAO:
        entry |= {name: version(name) for name in ("torch", "torchao")}
    return OnnxManifest(
        opened.name,
        dict(opened.source),
        shape,
        output=output,
        num_classes=num_classes,
        precision=INT8,
        preprocessing=opened.preprocessing.to_json(),
        history=[*opened.history, entry],
        options=_all(options),
        onnxruntime=onnxruntime.__version__,
        verdict=str(done["verdict"]),
    )


def _all(options: QuantizeOptions) -> dict[str, Any]:
    values = {name: value for name, value in vars(options).items() if name not in _NOT_KEPT}
    return dict(json.loads(json.dumps(values, default=str)))
