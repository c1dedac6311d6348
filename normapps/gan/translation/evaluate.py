"""How much nearer translation brings pictures to the target, by Fréchet and kernel distance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.pool import Pool
from ...engine.device import evaluating
from ...errors import InputError, UsageError
from ...files import check_writable, write_text
from ..data import read_pool
from ..evaluation.extractors import Extractor, open_extractor
from ..evaluation.options import MeasureOptions
from ..evaluation.provenance import Provenance, place_words
from ..evaluation.scorer import Scorer, of_pool, shuffled
from ..evaluation.scores import Scores, Seen, shown, too_few
from .options import TranslateEvaluateOptions
from .run import PictureTranslator, open_translator
from .strips import translate
from .unpaired import to_bytes, to_floats

_BATCH = 16
_DOMAINS = ("source", "target")


@dataclass(frozen=True)
class Comparison:
    """Distances to the target domain.

    Attributes:
        before: of the source's pictures as they are.
        after: of the same pictures, translated.
        floor: of some of the target's pictures against the others.
        is_fid: the Fréchet distance is the FID.
        provenance: how the scores came about.
        notes: what makes them mean less, a line each.
    """

    before: Scores
    after: Scores
    floor: Scores
    is_fid: bool
    provenance: Provenance
    notes: tuple[str, ...]

    def line(self) -> str:
        """Return what the scores are scores of, the floor too, in one line."""
        floor = self.floor.named(self.is_fid)
        words = (f"{key} {shown(key, floor[key])}" for key in floor if not key.endswith("_std"))
        return self.provenance.line(", ".join(words))

    def numbers(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        sides = {"before": self.before, "after": self.after, "floor": self.floor}
        scores = {name: side.named(self.is_fid) for name, side in sides.items()}
        told = dataclasses.asdict(self.provenance)
        return {**scores, "provenance": told, "notes": list(self.notes)}


def evaluate_translation(
    options: TranslateEvaluateOptions, say: Callable[[str], object] = print
) -> Comparison:
    """Score a translator: the source's pictures before and after, against the target's.

    Args:
        options: the translator, the domains (those of its training where none are named), the
            extractor.
        say: told what was read, a line each.

    Raises:
        UsageError: a translator of label maps.
        InputError: a translator, pictures or an extractor that cannot be used.
    """
    if options.out:
        check_writable(options.out, options.overwrite)
    translator = _opened(options)
    extractor = open_extractor(options.extractor, options.device)
    source, target = (_read(options, translator, name, say) for name in _DOMAINS)
    chosen = MeasureOptions(metrics=("frechet", "kernel"), seed=options.seed, fakes=len(source))
    scorer = Scorer(extractor, target, chosen)
    order = shuffled(len(source), 0, options.seed)
    before = scorer.see(of_pool(source, order, _BATCH))
    after = scorer.see(_translated(translator, of_pool(source, order, _BATCH)))
    found = Comparison(
        scorer.score(before),
        scorer.score(after),
        scorer.floor(),
        extractor.is_fid,
        _provenance(options, translator, extractor, scorer, after),
        tuple(too_few(scorer.real, after, chosen)),
    )
    if options.out:
        text = json.dumps(found.numbers(), indent=2, ensure_ascii=False) + "\n"
        write_text(Path(options.out), text, overwrite=options.overwrite)
    return found


def _opened(options: TranslateEvaluateOptions) -> PictureTranslator:
    translator = open_translator(options.model, back=options.back, device=options.device)
    if not isinstance(translator, PictureTranslator):
        raise UsageError(f"-m {options.model}: translates maps; `gan evaluate` scores its pictures")
    return translator


def _provenance(
    options: TranslateEvaluateOptions,
    translator: PictureTranslator,
    extractor: Extractor,
    scorer: Scorer,
    after: Seen,
) -> Provenance:
    trained = translator.history
    source, target = (place_words(_place(options, translator, name)) for name in _DOMAINS)
    return Provenance(
        extractor=extractor.name,
        sha256=extractor.sha256,
        features=scorer.real.features.shape[1],
        real=target,
        reals=scorer.real.count,
        fakes=after.count,
        held=scorer.held.count,
        compared=min(len(scorer.real.features), len(after.features)),
        resizer=extractor.describe_resizer(after.size),
        generator=f"{place_words(options.model)} of {source}",
        average=f"EMA {trained['ema']:g} of the parameters" if "ema" in trained else "",
        stage=f"step {trained['step']} of {trained['steps']}" if "steps" in trained else "",
        seed=options.seed,
    )


def _translated(translator: PictureTranslator, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    with evaluating(translator.generator):
        for batch in batches:
            made = translate(translator.generator, to_floats(batch).to(translator.device), 0)
            yield to_bytes(made)


def _read(
    options: TranslateEvaluateOptions,
    translator: PictureTranslator,
    name: str,
    say: Callable[[str], object],
) -> Pool:
    size = options.size or translator.trained_at
    if not size:
        raise InputError(f"--size: {options.model} does not tell at which size it was trained")
    place = _place(options, translator, name)
    return read_pool(place, size=size, channels=3, limit=options.limit, say=say)


def _place(options: TranslateEvaluateOptions, translator: PictureTranslator, name: str) -> str:
    place = getattr(options, name) or translator.places.get(name, "")
    if not place:
        raise UsageError(f"--{name} is missing; {options.model} does not tell what it learnt from")
    return str(place)
