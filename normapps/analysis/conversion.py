"""Converting the norm layers of a model and saving what comes out as a model folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.device import evaluating
from ..errors import InputError
from ..models.folder import check_target, save_model
from ..models.load import OpenedModel, open_by
from ..norm.condition import ConditionalLayer
from ..norm.convert.converter import Conversion, convert_norm_
from .options import ConvertOptions, layer_options


@dataclass(frozen=True)
class ConvertReport:
    """What `convert_model` did.

    Attributes:
        model: in words: name and weights.
        conversion: layer by layer.
        change: relative difference of the outputs on noise before and after, in inference mode;
            None where it is not known.
        unknown: why it is not.
    """

    model: str
    conversion: Conversion
    change: float | None
    unknown: str = ""


def convert_model(spec: str, out: str | os.PathLike[str], options: ConvertOptions) -> ConvertReport:
    """Replace the norm layers of a model and write it as a model folder.

    Layers that would have nothing to measure on a picture of the model's size are left as they
    are; the report names them.

    Args:
        spec: the model, as `open_model` takes it.
        out: the folder, which `load_model` opens again.
        options: which layers become which.

    Raises:
        InputError: a model that cannot be opened or holds no such layer, an unknown layer or
            option of it, or a folder that may not be written.
    """
    check_target(out, options.overwrite)
    opened = open_by(spec, options)
    model, noise = opened.model, _noise(opened)
    before = _output(model, noise)
    runs = isinstance(before, Tensor)
    chosen = layer_options(options.set)
    conversion = convert_norm_(
        model,
        options.to,
        match=options.match,
        include=options.include,
        exclude=options.exclude,
        init=options.init,
        example=noise if runs else None,
        **chosen,
    )
    step = {
        "to": options.to,
        "match": options.match,
        "init": options.init,
        "options": dict(chosen),
        "layers": [row.name for row in conversion.report if row.before != row.after],
    }
    if not step["layers"]:
        raise InputError(f"{spec}: no layer was converted; norm convert --match chooses others")
    source = _with_step(opened.source, step)
    save_model(
        out,
        model,
        builder="converted",
        arguments=source,
        preprocessing=opened.preprocessing.to_json(),
        history=[*opened.history, {"converted": step}],
        overwrite=options.overwrite,
    )
    change, unknown = _change(before, _output(model, noise) if runs else before)
    return ConvertReport(opened.describe(), conversion, change, unknown)


def _with_step(source: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the builder `converted`: steps on a converted model follow its own."""
    if source["builder"] == "converted":
        steps: Sequence[Any] = source["arguments"]["steps"]
        return {"base": source["arguments"]["base"], "steps": [*steps, step]}
    return {"base": dict(source), "steps": [step]}


def _noise(opened: OpenedModel) -> Tensor:
    wanted = opened.preprocessing
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, wanted.channels, *wanted.size, generator=generator)


def _output(model: nn.Module, x: Tensor) -> Tensor | str:
    """The model's output on pictures, or why there is none to compare."""
    if any(isinstance(layer, ConditionalLayer) for layer in model.modules()):
        return "the layers want a condition"
    try:
        with evaluating(model):
            y = model(x)
    except Exception as error:  # of somebody else's forward, that may want more than a picture
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"the model does not run on pictures alone ({reason})"
    return y if isinstance(y, Tensor) else f"the model returns {type(y).__name__}, not a tensor"


def _change(before: Tensor | str, after: Tensor | str) -> tuple[float | None, str]:
    if isinstance(before, str) or isinstance(after, str):
        return None, after if isinstance(after, str) else str(before)
    change = float((after - before).norm() / before.norm())
    if not math.isfinite(change):
        return None, "the outputs are not finite numbers, or zero"
    return change, ""
