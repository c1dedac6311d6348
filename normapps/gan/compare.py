"""`gan compare`: the same GAN under several normalizations and seeds, scored alike.

Each run is one of `gan train` in a folder of its own. What is there is kept, so that a comparison
can be interrupted, continued and given more seeds. A run that the watch stops is a result, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ..engine.loop import CHECKPOINT, check_fixed, check_folder
from ..engine.run import has_checkpoint
from ..files import write_text
from ..options import to_json
from .compare_options import CompareOptions, Variant
from .options import TrainOptions
from .run import open_run
from .train import train
from .watch import WatchError

SCORES, STOPPED = "scores.json", "stopped.json"
"""Where in a run folder its scores by step are, and why the watch stopped it."""

Say = Callable[[str], object]


@dataclass(frozen=True)
class Scoring:
    """How a generator is scored.

    Attributes:
        score: values by name, the one that decides first, and of it the lowest is best.
        lines: what the values are of: extractor, pictures, protocol.
        on_the_way: the deciding one alone, for curves; None takes `score`.
    """

    score: Callable[[nn.Module], Mapping[str, float]]
    lines: tuple[str, ...] = ()
    on_the_way: Callable[[nn.Module], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        variant: its normalization.
        seed: of the run.
        folder: the run's.
        scores: values by name, by step, the last one at the end.
        stopped: why the watch stopped it; "" where it came to its end.
    """

    variant: Variant
    seed: int
    folder: Path
    scores: Mapping[int, Mapping[str, float]]
    stopped: str = ""

    @property
    def final(self) -> Mapping[str, float]:
        """The scores at the end; empty for a run that was stopped."""
        return {} if self.stopped or not self.scores else self.scores[max(self.scores)]


def compare(
    options: CompareOptions,
    folder: Path,
    scoring: Scoring,
    *,
    variants: Sequence[Variant] | None = None,
    say: Say = print,
) -> list[Outcome]:
    """Train and score every variant with every seed, or what the folder lacks of that.

    Args:
        options: what is compared.
        folder: of the comparison; each run is in `VARIANT-SEED/`.
        scoring: how generators are scored.
        variants: others than those of the options, such as a few of their products.
        say: told what begins and what came out, a line each.

    Raises:
        InputError: pictures or a folder that cannot be used, or a comparison of other options in
            the folder.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    check_folder(folder, CompareOptions)
    if (folder / "options.json").exists():
        check_fixed(folder, options, options.fixed)
    write_text(folder / "options.json", to_json(options))
    seeds = range(options.seed, options.seed + options.seeds)
    # every variant once before any a second time: an interrupted comparison has them all
    return [
        _outcome(options, variant, seed, folder / f"{variant.name}-{seed}", scoring, say)
        for seed in seeds
        for variant in variants or options.variants
    ]


def _outcome(
    options: CompareOptions, variant: Variant, seed: int, folder: Path, scoring: Scoring, say: Say
) -> Outcome:
    recipe = options.recipe(variant, seed).resolved()
    steps, scores = recipe.steps or 1, _read_scores(folder)
    stopped = _read_stopped(folder)
    while not stopped and max(scores, default=0) < steps:
        say(f"{variant.name}, seed {seed}: from step {_done(folder)} of {steps}")
        try:
            done = _train_on(recipe, folder, options.score_every)
        except WatchError as error:
            stopped = str(error)
            write_text(folder / STOPPED, json.dumps({"reason": stopped}) + "\n")
            break
        score = scoring.score if done == steps else scoring.on_the_way or scoring.score
        scores[done] = dict(score(open_run(folder).generator()))
        write_text(folder / SCORES, json.dumps(scores, indent=2) + "\n")
    outcome = Outcome(variant, seed, folder, scores, stopped)
    say(f"{variant.name}, seed {seed}: {_told(outcome)}")
    return outcome


def _train_on(recipe: TrainOptions, folder: Path, every: int) -> int:
    """Train to the next step that is scored, and return it."""
    done, steps = _done(folder), recipe.steps or 1
    following = min(steps, (done // every + 1) * every) if every else steps
    # 0, at the end of a run whose generator was not written, takes no step and writes it
    train(replace(recipe, stop_after=following - done), folder, say=_silent)
    return open_run(folder).done


def _done(folder: Path) -> int:
    return open_run(folder).done if has_checkpoint(folder / CHECKPOINT) else 0


def _read_scores(folder: Path) -> dict[int, dict[str, float]]:
    path = folder / SCORES
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {int(step): values for step, values in found.items()}


def _read_stopped(folder: Path) -> str:
    path = folder / STOPPED
    return str(json.loads(path.read_text(encoding="utf-8"))["reason"]) if path.exists() else ""


def _told(outcome: Outcome) -> str:
    if outcome.stopped:
        return f"stopped: {outcome.stopped}"
    return ", ".join(f"{name} {value:.4g}" for name, value in outcome.final.items())


def _silent(line: str) -> None:
    """Say nothing: every run reads the same pictures."""
