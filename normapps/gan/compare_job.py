"""The command `gan compare`: pictures and an extractor to a folder of runs and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..engine.loop import check_folder
from ..measure.report import Report, write_report
from .compare import Outcome, Scoring, compare
from .compare_options import CompareOptions, Variant
from .compare_report import compare_report
from .evaluation.extractors import open_extractor
from .evaluation.options import MeasureOptions
from .evaluation.scorer import Scorer
from .evaluation.scores import shown
from .train import read


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
        extractor=options.extractor, fakes=options.fakes, seed=options.seed, device=options.device
    )
    extractor = open_extractor(options.extractor, options.device)
    pool = read(options.recipe(options.variants[0], options.seed), say)
    scorer = Scorer(extractor, pool, chosen)
    floor = scorer.floor().named(extractor.is_fid)
    lines = (
        f"Extractor {options.extractor}, sha256 {extractor.sha256[:12]}; "
        f"{extractor.describe_resizer(scorer.real.size)}.",
        f"{scorer.real.count} real pictures of the part {options.split}, {options.fakes} drawn by "
        "the averaged generator with standing statistics, at the step that is told.",
        "One half of the real pictures against the other: "
        + ", ".join(f"{name} {shown(name, value)}" for name, value in floor.items()) + ".",
    )  # fmt: skip
    return Scoring(scorer, lines)
