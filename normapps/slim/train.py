"""`slim train`: a network learns to do without some of its channels.

Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming: an L1 penalty
on the scales of batch norms, beside the loss. We differ in its default: the proximal step, which
reaches exact zeros; and only scales are penalized whose channels can be cut out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..engine.loop import check_folder
from ..graph import ChannelGraph, trace_channels
from ..measure.report import write_report
from ..models.load import OpenedModel
from ..training.classes import with_classes
from ..training.opening import Progress, open_for
from .fit_report import fit_report, judge_sparse, sparsity_numbers, sparsity_sections
from .fitting import Fitted, Recipe, compared, fit
from .following import next_command, next_section
from .material import Material, read_material
from .regularizer import ScaleRegularizer
from .sparsity import measure_sparsity, prunable_scales
from .train_options import SparseOptions
from .training import Regularize


def slim_train(
    spec: str,
    data: str,
    folder: Path,
    options: SparseOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
    ready: Callable[[], object] | None = None,
) -> Fitted:
    """Train a model with a penalty on its scales; see `train_sparse`.

    Args:
        spec: the model, as `open_model` takes it; a classifier of another number of outputs than
            there are classes starts anew, and that is said.
        data: labelled pictures, in a folder a class or a list.
        folder: the run folder.
        options: penalty, recipe, what is measured on.
        say: told what was opened, read and left out, a line each.
        progress: told of every picture that is read.
        ready: called when all is read and the steps begin.

    Raises:
        InputError: a model, pictures or folder that cannot be used.
    """
    if not options.overwrite:
        check_folder(folder, SparseOptions)
    opened = open_for(spec, options, say)
    measure_sparsity(opened.model)  # refuses, before pictures are read, a network without scales
    material = read_material(data, opened, options, say, progress)
    given, fresh = with_classes(opened, len(material.classes), options.seed)
    if fresh:
        say(f"its classifier starts anew with {len(material.classes)} outputs, one a class")
    if ready is not None:
        ready()
    return train_sparse(given, material, options, folder, fresh=fresh)


def train_sparse(
    model: nn.Module | OpenedModel,
    material: Material,
    options: SparseOptions,
    folder: Path,
    *,
    fresh: tuple[str, ...] = (),
) -> Fitted:
    """Train a classifier with a penalty on the scales that pruning could take.

    Continues what the folder holds, exactly. At the end the folder has `model/`, `report.json`
    and `report.html`, with the share of scales that are 0.

    Args:
        model: with an output a class; it stays as it is.
        material: pictures to learn from and to measure on.
        options: penalty and recipe.
        folder: the run.
        fresh: names of parameters that start anew: they learn with `options.head_lr` times the
            rate, and there is nothing to compare with but `--baseline`.

    Raises:
        InputError: a network without scales or whose channels cannot be cut out; else as `fit`.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    plain = model.model if isinstance(model, OpenedModel) else model
    graph = trace_channels(plain, _example(plain, material))
    chosen = prunable_scales(graph)
    is_random = bool(fresh) or (isinstance(model, OpenedModel) and model.is_random)
    recipe = Recipe(
        "slim train",
        partial(_regularize, options, graph),
        fresh=fresh,
        reference=compared(None if is_random else ("the given network", plain), options),
        entry={"penalty": options.kind},
    )
    fitted = fit(model, material, options, folder, recipe)
    if fitted.model is None:
        return fitted
    before, after = (measure_sparsity(each, chosen) for each in (plain, fitted.model))
    verdict = judge_sparse(fitted, after, options.target_sparsity)
    then = next_command(fitted.folder, after)
    told = fit_report(
        f"slim train: {options.kind}",
        fitted,
        verdict,
        material,
        options,
        [*sparsity_sections(before, after), *next_section(then)],
        {
            "penalty": options.kind,
            "strength": fitted.strength,
            "next": then or None,
            **sparsity_numbers(before, after),
        },
    )
    write_report(folder, told)
    return replace(fitted, verdict=verdict, then=then)


def _regularize(options: SparseOptions, graph: ChannelGraph, steps: int) -> Regularize:
    return partial(
        ScaleRegularizer,
        kind=options.kind,
        strength=options.weight,
        target_sparsity=options.target_sparsity,
        steps=steps,
        group=options.group,
        graph=graph,
        flops_weighted=options.flops_weighted,
    )


def _example(model: nn.Module, material: Material) -> torch.Tensor:
    like = next(model.parameters())
    return torch.zeros(1, *material.train.images.shape[1:], device=like.device)
