"""`slim finetune`: a pruned network recovers, with the weights that it kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..engine.loop import check_folder
from ..measure.report import write_report
from ..models.load import OpenedModel
from ..training.opening import Progress
from .fit_report import TOLERANCE, fit_report, judge_gain
from .fitting import Fitted, Recipe, compared, fit
from .material import Material, open_with_material
from .train_options import FinetuneOptions, ScratchOptions


def slim_finetune(
    spec: str,
    data: str,
    folder: Path,
    options: FinetuneOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
    ready: Callable[[], object] | None = None,
) -> Fitted:
    """Train a pruned model folder on; see `finetune`.

    Args:
        spec: the model folder; any other model that `open_model` takes does, too.
        data: labelled pictures of the classes that it knows, in a folder a class or a list.
        folder: the run folder.
        options: recipe, and what is measured on.
        say: told what was opened, read and left out, a line each.
        progress: told of every picture that is read.
        ready: called when all is read and the steps begin.

    Raises:
        InputError: a model, pictures or folder that cannot be used, or pictures of other classes.
    """
    if not options.overwrite:
        check_folder(folder, FinetuneOptions)
    opened, material = open_with_material(spec, data, options, say, progress)
    if ready is not None:
        ready()
    return finetune(opened, material, options, folder)


def finetune(
    model: nn.Module | OpenedModel, material: Material, options: FinetuneOptions, folder: Path
) -> Fitted:
    """Train a network on, and compare it with itself before, or with a baseline.

    Continues what the folder holds, exactly. At the end the folder has `model/`, `report.json`
    and `report.html`.

    Args:
        model: with an output a class; it stays as it is.
        material: pictures to learn from and to measure on.
        options: the recipe.
        folder: the run.

    Raises:
        InputError: as `fit`.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    plain = model.model if isinstance(model, OpenedModel) else model
    reference = compared(("the given network", plain), options)
    recipe = Recipe("slim finetune", freeze_stats=options.freeze_stats, reference=reference)
    return reported("slim finetune", model, material, options, folder, recipe)


def reported(
    title: str,
    model: nn.Module | OpenedModel,
    material: Material,
    options: FinetuneOptions | ScratchOptions,
    folder: Path,
    recipe: Recipe,
) -> Fitted:
    """Run `fit`, judge its result against what it is compared with, and write the report.

    A baseline is usually the network before pruning: `TOLERANCE` may be lost against it. Against
    the network that was given, accuracy has to be gained.
    """
    fitted = fit(model, material, options, folder, recipe)
    if fitted.score is None:
        return fitted
    verdict = judge_gain(fitted.score, fitted.reference, TOLERANCE if options.baseline else 0.0)
    told = fit_report(title, fitted, verdict, material, options, numbers=dict(recipe.entry or {}))
    write_report(folder, told)
    return replace(fitted, verdict=verdict)
