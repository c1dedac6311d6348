"""`adapt train`: from a model's name and folders of pictures to a finished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...engine.loop import check_folder
from ...training.classes import match_classes, with_classes
from ...training.opening import Progress, open_for, read_pool
from .options import TrainOptions
from .train import Trained, train_domains


def adapt_train(
    spec: str,
    folder: Path,
    options: TrainOptions,
    say: Callable[[str], object] = print,
    progress: Progress | None = None,
    ready: Callable[[], object] | None = None,
) -> Trained:
    """Train a model on labelled sources and unlabelled targets; see `train_domains`.

    Args:
        spec: the model, as `open_model` takes it; a classifier of another number of outputs than
            the sources have classes starts anew, and that is said.
        folder: the run folder.
        options: what to train on and how.
        say: told what was opened, read and left out, a line each.
        progress: told of every picture that is read.
        ready: called when all is read and the steps begin.

    Raises:
        InputError: a model, pictures or folder that cannot be used.
    """
    if not options.overwrite:
        check_folder(folder, TrainOptions)
    opened = open_for(spec, options, say)
    sources = [read_pool(place, opened, options, say, progress) for place in options.source]
    targets = [read_pool(place, opened, options, say, progress) for place in options.target]
    tests = [read_pool(place, opened, options, say, progress) for place in options.test]
    names = names_of(options.target)
    matched = match_classes(
        list(zip(options.source, sources, strict=True)),
        [*zip(options.target, targets, strict=True), *zip(options.test, tests, strict=True)],
    )
    for line in matched.said:
        say(line)
    given, fresh = with_classes(opened, len(matched.classes), options.seed)
    if fresh:
        say(
            f"its classifier starts anew with {len(matched.classes)} outputs, one a class of the "
            f"sources ({', '.join(fresh)})"
        )
    if ready is not None:
        ready()
    return train_domains(
        given,
        matched.sources,
        matched.others[: len(targets)],
        options,
        folder,
        tests=matched.others[len(targets) :],
        names=names,
        hold_out=options.hold_out,
        fresh=fresh,
        overwrite=options.overwrite,
    )


def names_of(places: Sequence[str]) -> tuple[str, ...]:
    """Return what each target is called: the last part of its path, numbered where two agree."""
    stems = [Path(place).stem or place for place in places]
    return tuple(
        stem + (f"-{stems[:number].count(stem) + 1}" if stem in stems[:number] else "")
        for number, stem in enumerate(stems)
    )
