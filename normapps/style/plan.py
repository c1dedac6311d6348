"""What a stylization job will read and write, and whether it may; loads no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.images import writable_format
from ..data.inputs import STDIO, Input, find_inputs, is_folder_output, plan_outputs
from ..data.manifest import Manifest, without_made
from ..errors import InputError, UsageError
from .stylize_options import PRESET, StylizeOptions


@dataclass(frozen=True)
class Task:
    """One result to make.

    Attributes:
        source: the picture.
        style: number of the style among those of the job; a blend is one style, number 0.
        target: the file, or None for standard output.
    """

    source: Input
    style: int
    target: Path | None

    @property
    def content(self) -> str:
        """The picture's path, `-` for standard input."""
        return STDIO if self.source.path is None else str(self.source.path)

    @property
    def output(self) -> str:
        """The result's path, `-` for standard output."""
        return STDIO if self.target is None else str(self.target)


@dataclass(frozen=True)
class Plan:
    """All tasks, those of one picture after each other, and the manifest of a folder job."""

    tasks: tuple[Task, ...]
    manifest: Manifest | None


def plan_job(options: StylizeOptions, contents: Sequence[str]) -> Plan:
    """Find the pictures, name the results and see that they can be written.

    What an earlier job made in the output folder is no picture to stylize, unless it is named
    itself.

    Raises:
        UsageError: an output that does not fit the results, or is an input or a style itself.
        InputError: no picture, no such style, or a folder that cannot be written.
    """
    check_styles(options.style)
    _check_masks(options.mask)
    inputs = find_inputs(contents)
    is_one = options.is_one_look
    results = len(inputs) * (1 if is_one else len(options.style))
    manifest = None
    if is_folder_output(options.output, results):
        manifest = Manifest(options.output)
        inputs = without_made(inputs, manifest, contents)
    names = [style_name(spec) for spec in options.style]
    planned = plan_outputs(inputs, names, options.output, multiple=not is_one)
    tasks = tuple(Task(*each) for each in planned)
    _check_targets([task.target for task in tasks if task.target], manifest)
    check_not_read(tasks, options.style, options.mask)
    return Plan(tasks, manifest)


def style_name(spec: str) -> str:
    """Name a style for file names: `ink` for `preset:ink`, `wave` for `paintings/wave.jpg`."""
    return spec.removeprefix(PRESET) if spec.startswith(PRESET) else Path(spec).stem


def check_styles(specs: Iterable[str]) -> None:
    """See that the styles that are files exist.

    Raises:
        InputError: one does not.
    """
    for spec in specs:
        if not spec.startswith(PRESET) and not os.path.exists(spec):
            raise InputError(
                f"{spec}: no such style file; check the path, shipped ones are {PRESET}NAME"
            )


def _check_masks(paths: Iterable[str]) -> None:
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"--mask {path}: does not exist; check the path")


def _check_targets(targets: Sequence[Path], manifest: Manifest | None) -> None:
    for target in targets:
        try:
            writable_format(target)
        except InputError as error:
            raise UsageError(f"-o {error}") from error
    if targets:
        check_place(manifest.path.parent if manifest else targets[0].parent)


def check_not_read(tasks: Sequence[Task], styles: Iterable[str], masks: Iterable[str] = ()) -> None:
    """See that no result replaces a style or mask, or a picture that is still to be read.

    Raises:
        UsageError: one does.
    """
    read = {os.path.realpath(t.source.path): t.source for t in tasks if t.source.path}
    named = {os.path.realpath(spec): "style" for spec in styles}
    named |= {os.path.realpath(path): "mask" for path in masks}
    for task in tasks:
        if task.target is None:
            continue
        place = os.path.realpath(task.target)
        if place in named:
            raise UsageError(
                f"-o {task.output}: is a {named[place]} of this job; name another output"
            )
        if read.get(place, task.source) is not task.source:
            raise UsageError(
                f"-o {task.output}: is itself a picture to be read; name another output"
            )


def check_place(folder: Path) -> None:
    """See that a folder can be written, or made in the nearest one that exists.

    Raises:
        InputError: it cannot.
    """
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not place.is_dir():
        raise InputError(f"{folder}: cannot be made, {place} is a file; name another -o")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {place} is not writable; name another -o")
