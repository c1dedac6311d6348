"""What a job of clips will read and write, and whether it may; loads no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..data.clips import CLIP_SUFFIXES
from ..data.inputs import STDIO, Input, find_inputs, is_folder_output, plan_outputs
from ..data.manifest import Manifest, without_made
from ..data.video import pyav
from ..data.video_write import choose_codec
from ..errors import UsageError
from .plan import Plan, Task, check_not_read, check_place, check_styles, style_name
from .stylize_options import StylizeOptions


def plan_clips(options: StylizeOptions, contents: Sequence[str]) -> Plan:
    """Find the clips, name the results and see that they can be written.

    In a folder a result keeps its clip's container where that can be written, else it is an mp4.

    Raises:
        UsageError: an output that does not fit the results, or is a clip or style itself; an
            option that does not go with clips.
        InputError: no clip, no such style, PyAV is missing, or a folder that cannot be written.
    """
    pyav()
    _check_fitting(options)
    check_styles(options.style)
    inputs = find_inputs(contents, suffixes=CLIP_SUFFIXES)
    multiple = options.weights is None
    results = len(inputs) * (len(options.style) if multiple else 1)
    if not is_folder_output(options.output, results):
        choose_codec(options.output, options.codec)
        return _checked(Plan((Task(inputs[0], 0, Path(options.output)),), None), options)
    if Path(options.output).suffix.lower() in CLIP_SUFFIXES and not _is_folder(options.output):
        raise UsageError(
            f"-o {options.output}: one file cannot hold {results} results; name a folder, "
            f"-o {Path(options.output).stem}/"
        )
    manifest = Manifest(options.output)
    inputs = without_made(inputs, manifest, contents)
    names = [style_name(spec) for spec in options.style]
    # the planner names pictures: their suffix stands in for the clip's
    stems = [Input(item.path, item.name.with_suffix(".png")) for item in inputs]
    suffixes = {item.path: _suffix(item, options.codec) for item in inputs}
    planned = plan_outputs(stems, names, options.output, multiple=multiple)
    tasks = tuple(
        Task(item, style, target and target.with_suffix(suffixes[item.path]))
        for item, style, target in planned
    )
    return _checked(Plan(tasks, manifest), options)


def _checked(plan: Plan, options: StylizeOptions) -> Plan:
    target = plan.tasks[0].target
    if target is not None:
        check_place(plan.manifest.path.parent if plan.manifest else target.parent)
    check_not_read(plan.tasks, options.style)
    for task in plan.tasks:
        if os.path.realpath(task.output) == os.path.realpath(task.content):
            raise UsageError(f"-o {task.output}: is the clip itself; name another output")
    return plan


def _suffix(item: Input, codec: str) -> str:
    try:
        choose_codec(item.name, codec)
    except UsageError:
        return ".mp4"
    return item.name.suffix


def _check_fitting(options: StylizeOptions) -> None:
    if options.output == STDIO:
        raise UsageError("-o -: a clip cannot go to standard output; name a file")
    if options.runtime == "onnx":
        raise UsageError("--runtime onnx: paints pictures only; clips need --runtime torch")
    if options.mask:
        raise UsageError("--mask: a mask is for one picture; clips take none")


def _is_folder(output: str) -> bool:
    return output.endswith("/") or Path(output).is_dir()
