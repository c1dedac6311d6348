"""`gan evaluate`: a generator, or a folder of pictures, scored against real pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.pool import Pool
from ...data.sources import PictureSource
from ...engine.device import place, resolve_device
from ...errors import InputError
from ...models.folder import MANIFEST
from ...models.shipped import list_shipped
from ..data import read_pool
from ..drawing import words_of
from ..opening import GENERATOR, Opened, open_generator
from .extractors import open_extractor
from .options import EvaluateOptions
from .provenance import Provenance, place_words
from .scorer import Scorer, drawn, held_count, of_pool, shuffled
from .scores import Scores, too_few

Say = Callable[[str], object]
Advance = Callable[[str, int], object]
"""Told of every batch that was seen, and how many there are."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        scores: of the generator or the folder.
        floor: of real pictures against real ones (`Scorer.floor`); None if not measured.
        is_fid: the Fréchet distance is the FID.
        provenance: how the scores came about.
        notes: what makes them mean less, a line each.
        options: of the evaluation, with what they left open.
    """

    scores: Scores
    floor: Scores | None
    is_fid: bool
    provenance: Provenance
    notes: tuple[str, ...]
    options: EvaluateOptions


@dataclass(frozen=True)
class _Given:
    """What is scored, and against what.

    Attributes:
        name: of the generator or the folder.
        options: with what they left open.
        real: the real pictures.
        count: of the pictures to be scored.
        pictures: these, in batches, drawn when they are asked for.
        words: what `Provenance` says of them, by its names.
        notes: what makes the scores mean less.
    """

    name: str
    options: EvaluateOptions
    real: Pool
    count: int
    pictures: Iterator[Tensor]
    words: Mapping[str, str]
    notes: tuple[str, ...] = ()


def evaluate(
    source: str | os.PathLike[str],
    options: EvaluateOptions,
    say: Say = print,
    advance: Advance = lambda name, total: None,
) -> Evaluation:
    """Score a generator, or pictures, against real pictures.

    Args:
        source: a run of `gan train`, a generator's model folder or shipped name; or a folder, tar,
            ZIP or list of pictures.
        options: what is compared and how. Without `data`, what the generator was trained on.
        say: told what was read, a line each.
        advance: told of every batch of pictures.

    Raises:
        InputError: a generator, pictures or an extractor that cannot be used; too few pictures.
    """
    name = os.fspath(source)
    extractor = open_extractor(
        options.extractor,
        options.device,
        resizer=options.resizer,
        other_weights=options.other_weights,
    )
    say(f"extractor {extractor.name}, sha256 {extractor.sha256[:8]}")
    open_it = _open_pictures if _is_pictures(name) else _open_generator
    given = open_it(name, options, say)
    total = _batches(given)
    scorer = Scorer(extractor, given.real, given.options, lambda count: advance("pictures", total))
    fake = scorer.see(given.pictures)
    provenance = Provenance(
        extractor=extractor.name,
        sha256=extractor.sha256,
        features=scorer.real.features.shape[1],
        real=f"{place_words(given.options.data)}, {given.options.split}",
        reals=scorer.real.count,
        fakes=fake.count,
        held=scorer.held.count,
        compared=min(len(scorer.real.features), len(fake.features)),
        resizer=extractor.describe_resizer(fake.size),
        generator=place_words(name),
        seed=options.seed,
        **given.words,
    )
    return Evaluation(
        scorer.score(fake),
        scorer.floor() if options.floor else None,
        extractor.is_fid,
        provenance,
        (*given.notes, *too_few(scorer.real, fake, options)),
        given.options,
    )


def _is_pictures(name: str) -> bool:
    """Whether a source is pictures and not a generator."""
    path = Path(name).expanduser()
    if name in list_shipped() or not path.exists():
        return False
    marks = (path / MANIFEST, path / GENERATOR, path / "options.json")
    return not any(each.exists() for each in marks)


def _open_pictures(name: str, options: EvaluateOptions, say: Say) -> _Given:
    if not options.data:
        raise InputError(f"--data: give the real pictures that {name} is scored against")
    if options.bn != "standing" or options.standing is not None:
        raise InputError(f"--bn, --standing: {name} is pictures, drawn already; leave them out")
    size = options.size or _side(name)
    made = _read(name, options, size, 0, say)
    options = replace(options, size=size, fakes=min(options.fakes, len(made)))
    real = _read(options.data, options, size, made.images.shape[1], say, split=options.split)
    chosen = shuffled(len(made), options.fakes, options.seed)
    pictures = of_pool(made, chosen, options.batch_size)
    words = {"stage": _stage({}, options.best)}
    return _Given(name, options, real, len(chosen), pictures, words)


def _open_generator(name: str, options: EvaluateOptions, say: Say) -> _Given:
    opened = open_generator(name)
    told = _trained(opened)
    trained = told.get("options", {})
    if not options.data:
        if not trained.get("data"):
            raise InputError(f"--data: {name} does not tell what it was trained on; give pictures")
        options = replace(options, data=str(trained["data"]))
    size, channels = (int(getattr(opened.generator, each)) for each in ("size", "channels"))
    if options.size not in (None, size):
        raise InputError(f"--size {options.size}: {name} draws {size} pixels; leave it out")
    options = replace(options, size=size)
    real, notes = _real(opened, options, size, channels, say)
    words = {
        "bn": words_of(options.bn, options.standing),
        "average": _average(trained),
        "stage": _stage(told, options.best),
    }
    pictures = _drawn(opened, options, real.labels)
    return _Given(name, options, real, options.fakes, pictures, words, notes)


def _real(
    opened: Opened, options: EvaluateOptions, size: int, channels: int, say: Say
) -> tuple[Pool, tuple[str, ...]]:
    """Real pictures, with labels where the generator knows the same classes; and a note."""

    def read(conditional: bool) -> Pool:
        how = {"split": options.split, "conditional": conditional}
        return _read(options.data, options, size, channels, say, **how)

    if not opened.classes:
        return read(False), ()
    try:
        pool = read(True)
    except InputError as error:  # without classes, or not to be read at all: then once more
        say(str(error))
        pool = read(False)
    if pool.classes == opened.classes:
        return pool, ()
    note = "the real pictures have other classes or none: the generator's are drawn equally often"
    return Pool(pool.images, None, (), pool.failed, pool.notes), (note,)


def _read(
    data: str, options: EvaluateOptions, size: int, channels: int, say: Say, **how: Any
) -> Pool:
    return read_pool(
        data,
        size=size,
        channels=channels,
        workers=options.workers,
        max_bytes=options.max_bytes,
        say=say,
        **how,
    )


def _drawn(opened: Opened, options: EvaluateOptions, labels: Tensor | None) -> Iterator[Tensor]:
    place(opened.generator, resolve_device(options.device))
    with opened.use_(options.bn, standing=options.standing, seed=options.seed):
        yield from drawn(opened.generator, options, labels, options.bn)


def _side(name: str) -> int:
    """The shorter side of the first picture of a folder."""
    return int(min(PictureSource([name]).load(0).shape[:2]))


def _trained(opened: Opened) -> Mapping[str, Any]:
    """What the history of a generator says of its training; empty where it says nothing."""
    told = [e for e in opened.manifest.history if isinstance(e, Mapping) and "step" in e]
    return told[-1] if told else {}


def _average(trained: Mapping[str, Any]) -> str:
    decay = trained.get("ema")
    if decay is None:
        return ""
    return f"EMA {decay:g} of the parameters" if decay else "no EMA"


def _stage(told: Mapping[str, Any], best: bool | None) -> str:
    """Say which step the generator is of, and whether it was chosen by its score."""
    step, steps = told.get("step"), told.get("options", {}).get("steps")
    at = "" if step is None else f"step {step:,}" + (f" of {steps:,}" if steps else "")
    is_final = step == steps if best is None and steps else None
    kind = {True: "best, chosen by its score", False: "final"}.get(best) if best is not None else ""
    kind = kind or ("final" if is_final else "")
    return ", ".join(filter(None, [kind, at]))


def _batches(given: _Given) -> int:
    """Batches of both parts of the real pictures, and of the others."""
    reals = min(given.options.reals or len(given.real), len(given.real))
    held = held_count(reals, given.options)
    sets = (held, reals - held, given.count)
    return sum(-(-count // given.options.batch_size) for count in sets)
