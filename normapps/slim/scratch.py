"""`slim scratch`: the shapes of a pruned network, trained from fresh weights.

Liu et al. 2019, Rethinking the Value of Network Pruning: often such a network is as good as the
finetuned one, so that what pruning found is the shape. Scratch-E trains as many steps as the
large network did, scratch-B as many multiplications: --budget. The paper doubles the steps where
more than half of the multiplications went; we take their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.loop import check_folder
from ..errors import InputError
from ..graph import trace_channels
from ..models.folder import build
from ..models.load import OpenedModel
from ..training.opening import Progress
from .finetune import reported
from .fitting import Fitted, Recipe, compared
from .material import Material, open_with_material
from .train_options import ScratchOptions

_ENOUGH = 32
"""Numbers in a weight from which its variance tells by which rule it was drawn."""


def slim_scratch(
    spec: str,
    data: str,
    folder: Path,
    options: ScratchOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
    ready: Callable[[], object] | None = None,
) -> Fitted:
    """Train the shapes of a model folder from fresh weights; see `train_from_scratch`.

    Args:
        spec: the pruned model folder; any other model that `open_model` takes does, too.
        data: labelled pictures of the classes that it knows, in a folder a class or a list.
        folder: the run folder.
        options: recipe, budget, and what is measured on.
        say: told what was opened, read and left out, a line each.
        progress: told of every picture that is read.
        ready: called when all is read and the steps begin.

    Raises:
        InputError: a model, pictures or folder that cannot be used, or pictures of other classes.
    """
    if not options.overwrite:
        check_folder(folder, ScratchOptions)
    opened, material = open_with_material(spec, data, options, say, progress)
    if ready is not None:
        ready()
    return train_from_scratch(opened, material, options, folder)


def train_from_scratch(
    opened: OpenedModel, material: Material, options: ScratchOptions, folder: Path
) -> Fitted:
    """Train a network of the same shapes from fresh weights, and compare the two.

    Continues what the folder holds, exactly. At the end the folder has `model/`, `report.json`
    and `report.html`.

    Args:
        opened: with an output a class; its weights serve to compare only.
        material: pictures to learn from and to measure on.
        options: the recipe; the seed gives the weights.
        folder: the run.

    Raises:
        InputError: `--budget flops` of a network that was not pruned; else as `fit`.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    stretch = 1.0
    if options.budget == "flops":
        stretch = flops_ratio(opened, tuple(material.train.images.shape[1:]))
    given = None if opened.is_random else ("the given network", opened.model)
    fresh = replace(opened, model=fresh_network(opened.source, options.seed))
    recipe = Recipe(
        "slim scratch",
        reference=compared(given, options),
        entry={"budget": options.budget, "seed": options.seed},
        stretch=stretch,
    )
    return reported("slim scratch", fresh, material, options, folder, recipe)


def fresh_network(source: Mapping[str, Any], seed: int) -> nn.Module:
    """Make a network of a model folder's shapes with weights as its architecture draws them.

    The whole architecture is made, then cut. A weight whose variance goes by its numbers of
    inputs or outputs (He et al. 2015, Glorot & Bengio 2010) is scaled to the numbers that are
    left. By which it goes is read from the variances of all weights, so that any architecture's
    own rule is kept.

    Args:
        source: `builder` and `arguments` of the network.
        seed: of the weights.
    """
    model = build(source["builder"], source["arguments"], seed=seed)
    root = whole_source(source)
    if root != source:
        _rescale_(model, build(root["builder"], root["arguments"], seed=seed))
    return model.eval()


def whole_source(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return builder and arguments of the network that a slimmed one was cut from, or its own."""
    arguments = source["arguments"]
    if source["builder"] == "slimmed":
        return whole_source(arguments["base"])
    if source["builder"] == "converted":
        return {**source, "arguments": {**arguments, "base": whole_source(arguments["base"])}}
    return source


def flops_ratio(opened: OpenedModel, shape: tuple[int, ...]) -> float:
    """Return how many times the multiplications of a pruned network the whole one takes.

    Args:
        opened: the pruned network.
        shape: of a picture, (C, H, W).

    Raises:
        InputError: it was not pruned.
    """
    root = whole_source(opened.source)
    if root == opened.source:
        raise InputError(
            f"{opened.name}: was not pruned, so --budget flops has nothing to go by; give "
            "--budget steps"
        )
    whole = build(root["builder"], root["arguments"], seed=0).eval()
    example = torch.zeros(1, *shape)
    macs = [trace_channels(each, example).macs() for each in (whole, opened.model)]
    return macs[0] / macs[1]


@torch.no_grad()
def _rescale_(model: nn.Module, whole: nn.Module) -> None:
    """Give each cut weight the variance that its rule asks for; `whole` is the uncut draw."""
    modules = dict(whole.named_modules())
    for kind in (nn.modules.conv._ConvNd, nn.Linear):
        pairs = [
            (modules[name], module)
            for name, module in model.named_modules()
            if isinstance(module, kind)
        ]
        rule = _rule_of(before for before, _ in pairs)
        for before, after in pairs:
            if after.weight.shape != before.weight.shape:
                after.weight.mul_(math.sqrt(rule(before) / rule(after)))


def _rule_of(layers: Iterable[nn.Module]) -> Callable[[nn.Module], float]:
    """The rule under which the layers' variances differ least: variance · rule is constant."""
    drawn = [each for each in layers if _weight(each).numel() >= _ENOUGH and _weight(each).any()]

    def spread(rule: Callable[[nn.Module], float]) -> float:
        logs = [math.log(float(_weight(each).var()) * rule(each)) for each in drawn]
        middle = sorted(logs)[len(logs) // 2]
        return sum(abs(each - middle) for each in logs)

    return min(_RULES, key=spread) if len(drawn) > 1 else _inputs


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise InputError(f"{type(layer).__name__}: has no weight to draw anew")
    return weight


def _inputs(layer: nn.Module) -> float:
    return float(_weight(layer)[0].numel())


def _outputs(layer: nn.Module) -> float:
    weight = _weight(layer)
    return float(weight.numel() / weight.shape[1])


def _outputs_of_a_group(layer: nn.Module) -> float:
    return _outputs(layer) / float(getattr(layer, "groups", 1))


def _constant(layer: nn.Module) -> float:
    return 1.0


_RULES = (_inputs, _outputs, _outputs_of_a_group, _constant)
"""Fan-in, fan-out as `torch.nn.init` counts it, fan-out of a group as timm counts it, none."""
