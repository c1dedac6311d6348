"""The run of paired training: pairs read, a SPADE generator trained and published."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...errors import UsageError
from .paired import PairPool, read_pairs
from .paired_options import PairedOptions
from .spade_trainer import PairedTask
from .train import check_run, run_training

_TOLD = 20
"""Lines about files that were left out, at most."""


def train_paired(
    options: PairedOptions, folder: Path, say: Callable[[str], object] = print
) -> Path:
    """Train from label maps to pictures, or continue what the folder holds.

    The folder gets `options.json`, `metrics.jsonl`, `samples/` (map | generated | real),
    `checkpoint/` and, at the end, `generator/`: a model folder of the averaged weights, with the
    legend of the maps.

    Args:
        options: the pairs and the recipe.
        folder: the run folder.
        say: told what was read and left out, a line each.

    Returns:
        `folder / "generator"`; it is not there yet where the run was stopped before its end.

    Raises:
        UsageError: maps or pictures are missing.
        InputError: pairs or a folder that cannot be used, or a loss that is not finite.
        KeyboardInterrupt: after Ctrl-C, with the checkpoint written.
    """
    for name in ("maps", "target"):
        if not getattr(options, name):
            raise UsageError(f"--{name} is missing; name a folder, zip or tar")
    check_run(options, folder)
    pool = read_pairs(
        options.maps,
        options.target,
        size=options.size,
        ignored=options.ignore,
        limit=options.limit,
        workers=options.workers,
        max_bytes=options.max_bytes,
    )
    _tell(pool, say)
    return run_training(options, folder, partial(PairedTask, options, pool))


def _tell(pool: PairPool, say: Callable[[str], object]) -> None:
    for line in pool.failed[:_TOLD]:
        say(line)
    if len(pool.failed) > _TOLD:
        say(f"and {len(pool.failed) - _TOLD} more left out")
    classes = f"{len(pool.legend.values)} classes, {pool.legend.kind}"
    cut = f"; {pool.cropped} cut to the square in their middle" if pool.cropped else ""
    say(f"{len(pool)} pairs of {pool.maps.shape[1]}×{pool.maps.shape[2]}, {classes}{cut}")
