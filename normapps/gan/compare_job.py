"""The command `gan compare`: pictures and an extractor to a folder of runs and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..engine.loop import check_folder
from ..measure.report import Report, write_report
from .compare import Outcome, Scoring, compare
from .compare_options import CompareOptions, Variant
from .compare_report import compare_report
from .evaluation.extractors import open_extractor
from .evaluation.options import MeasureOptions
from .evaluation.provenance import place_words
from .evaluation.scorer import Scorer
from .evaluation.scores import shown, singular_words
from .train import read

METRICS = ("frechet", "manifold")
"""What is measured at the end of a run; on the way the first alone, which decides."""


@dataclass(frozen=True)
class Compared:
    """What a comparison made: its runs, and the report that the folder holds."""

    outcomes: list[Outcome]
    report: Report


def gan_compare(
    folder: Path,
    options: CompareOptions,
    *,
    variants: Sequence[Variant] | None = None,
    say: Callable[[str], object] = print,
) -> Compared:
    """Train a GAN under several normalizations, score all alike, and write the report.

    The folder gets a run a normalization and seed, `report.json` and `report.html`; what it has of
    that is kept.

    Args:
        folder: of the comparison.
        options: what is compared, and how.
        variants: others than those of the options.
        say: told what was read, begins and came out, a line each.

    Raises:
        InputError: pictures, an extractor or a folder that cannot be used.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    check_folder(folder, CompareOptions)
    scoring = make_scoring(options, say)
    outcomes = compare(options, folder, scoring, variants=variants, say=say)
    report = compare_report(options, outcomes, scoring)
    write_report(folder, report)
    return Compared(outcomes, report)


def make_scoring(options: CompareOptions, say: Callable[[str], object]) -> Scoring:
    """Look at the real pictures, and return what scores a generator against them.

    Raises:
        InputError: pictures or an extractor that cannot be used.
    """
    chosen = MeasureOptions(
        extractor=options.extractor, fakes=options.fakes, seed=options.seed,
        device=options.device, metrics=METRICS,
    )  # fmt: skip
    extractor = open_extractor(options.extractor, options.device)
    pool = read(options.recipe(options.variants[0], options.seed), say)
    scorer = Scorer(extractor, pool, chosen)
    floor, width = scorer.floor().named(extractor.is_fid), scorer.real.features.shape[1]
    few = singular_words(min(scorer.real.count, options.fakes), width)
    too_few_pictures = [f"{few[0].upper()}{few[1:]}."] if few else []
    lines = (
        f"Extractor {extractor.name}, sha256 {extractor.sha256[:8]}, {width:,} features; resizer "
        f"{extractor.describe_resizer(scorer.real.size)}.",
        f"{scorer.real.count:,} real pictures ({place_words(options.data)}, {options.split}), "
        f"{options.fakes:,} drawn (seed {options.seed}) by the generator averaged with EMA "
        f"{options.ema:g}, with standing statistics of {options.standing:,} latents, at the step "
        "that is told; the last step's decides, none was chosen by its score.",
        f"Floor, {scorer.held.count:,} real pictures against the {scorer.others.count:,} others: "
        + ", ".join(f"{name} {shown(name, value)}" for name, value in floor.items()) + ".",
        *too_few_pictures,
    )  # fmt: skip
    return Scoring(scorer, lines, partial(scorer, metrics=METRICS[:1]))
