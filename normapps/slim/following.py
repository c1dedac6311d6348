"""What to do with a sparsely trained network: the command that prunes it."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..measure.report import Section
from .sparsity import Sparsity

_FEW = 0.01
"""A smaller share of scales is not worth a cut."""


def next_command(folder: Path | None, sparsity: Sparsity) -> str:
    """Return the `normapps slim prune` that takes what sparse training made useless.

    Scales that are 0 go without loss; where there are none, as after the subgradient, those that
    are small go. "" where there is nothing to cut, or no model folder.

    Args:
        folder: the trained network's.
        sparsity: of its scales.
    """
    share = int(100 * sparsity.small) / 100
    if folder is None or sparsity.zeros == 1 or max(sparsity.zeros, share) < _FEW:
        return ""
    amount = "--lossless" if sparsity.zeros >= _FEW else f"--ratio {share:g}"
    out = shlex.quote(f"{folder.parent}-pruned")
    return f"normapps slim prune {shlex.quote(str(folder))} -o {out} {amount}"


def next_section(command: str) -> list[Section]:
    """Return what a report says of it; nothing where there is no command."""
    if not command:
        return []
    told = (
        "Sparse training alone makes nothing smaller: prune the network, with --data and labelled"
        " pictures to see what it costs."
    )
    return [Section("What comes next", [told, command])]
