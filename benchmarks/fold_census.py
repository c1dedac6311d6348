"""Folding batch norms on every family of timm and torchvision that has a 2d batch norm.

The models of benchmarks/census.py, with random weights and statistics that are not trivial, folded
in float32 and in float64, compared with what they were and taken back to the bit. Prints the table
of RESULTS.md and what stays, with the reasons; a family that fails ends the run with its name.

    python benchmarks/fold_census.py            # prints and writes RESULTS.md
    python benchmarks/fold_census.py --dry-run  # prints
"""

from __future__ import annotations

import argparse
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import census
import torch
from results import conditions, table, write_section
from torch import Tensor, nn

from normapps.graph.fold import Folding, fold_batchnorm_

BARS = {torch.float32: 1e-4, torch.float64: 1e-10}

HEAD = ("model", "family", "batch norms", "behind a layer", "before", "left", "float32", "float64")

ABOUT = """## Folding, family by family

`fold_batchnorm_` on random weights, scales and statistics, two pictures. *behind a layer*,
*before*: batch norms that went into the convolutions or linear layers before them, or behind them.
*left*: those that stay, below with the reasons. float32, float64: max|a − b| / max|a| of the logits
(bars: 1e-4, 1e-10). Undone, every model is what it was to the bit."""


class Row(NamedTuple):
    """What came out of one model."""

    family: str
    model: str
    norms: int
    after: int
    before: int
    left: tuple[tuple[str, str], ...]
    single: float
    double: float

    def cells(self) -> list[str]:
        """Return the line of the table."""
        counts = (self.norms, self.after, self.before, len(self.left))
        differences = (f"{self.single:.1e}", f"{self.double:.1e}")
        return [f"`{self.model}`", self.family, *map(str, counts), *differences]


def examined(family: str, name: str, make: Callable[[str], tuple[nn.Module, Tensor]]) -> Row:
    """Make a model and fold it; says which one it was that failed.

    Raises:
        AssertionError: it fails.
    """
    try:
        return examine(family, name, *make(name))
    except Exception as error:
        raise AssertionError(f"{family}, {name}: {error!r}") from error


def examine(family: str, name: str, model: nn.Module, x: Tensor) -> Row:
    """Fold a model in both precisions.

    Raises:
        AssertionError: it fails, with what was wrong.
    """
    norms, differences = len(census.batch_norms(model)), []
    for dtype, bar in BARS.items():
        folding, difference = _folded(model.to(dtype), x.to(dtype))
        census.check(difference <= bar, f"differs by {difference:.1e} in {dtype}")
        differences.append(difference)
    where = Counter(each.where for each in folding.folded)
    census.check(sum(where.values()) + len(folding.left) == norms, "norms that nothing is said of")
    counts = (norms, where["after"], where["before"])
    return Row(family, name, *counts, folding.left, *differences)


@torch.no_grad()
def _folded(model: nn.Module, x: Tensor) -> tuple[Folding, float]:
    """Fold, compare, undo; the comparison is not the fold's own."""
    before, state = census._logits(model(x)), copy.deepcopy(model.state_dict())
    folding = fold_batchnorm_(model, x)
    left = len(census.batch_norms(model))
    census.check(left == len(folding.left), f"{left} batch norms stay, {len(folding.left)} said")
    difference = float((census._logits(model(x)) - before).abs().max() / before.abs().max())
    folding()
    after = model.state_dict()
    census.check(list(after) == list(state), "other keys after undo")
    census.check(all(torch.equal(after[key], state[key]) for key in state), "other bits after undo")
    return folding, difference


def timm_rows(families: Iterable[str] = census.SMALLEST) -> Iterator[Row]:
    """Examine timm's families, one after the other."""
    for family in families:
        for name in (census.SMALLEST[family], *census.MORE.get(family, ())):
            yield examined(family, name, census.timm_model)


def torchvision_rows() -> Iterator[Row]:
    """Examine torchvision's families, one after the other."""
    for family, name in census.TORCHVISION.items():
        yield examined(f"torchvision {family}", name, census.torchvision_model)


def reasons(rows: Iterable[Row]) -> str:
    """List what was left and why, a line a model; names of modules are left out."""
    lines = []
    for row in rows:
        said = Counter(_short(why) for _, why in row.left)
        if said:
            parts = (f"{why} ({count})" for why, count in said.most_common())
            lines.append(f"- `{row.model}`: {'; '.join(parts)}")
    return "Left, by what they read:\n\n" + "\n".join(lines)


def _short(reason: str) -> str:
    short = re.sub(r" (of )?'[^']*'", "", reason.split(";", maxsplit=1)[0])
    return short + ("; *reparametrize first*" if "called before this" in reason else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--dry-run", action="store_true", help="print, but write nothing")
    options = parser.parse_args()
    rows = []
    for row in (row for source in (timm_rows(), torchvision_rows()) for row in source):
        rows.append(row)
        print(*row.cells(), sep="  ", flush=True)
    norms, left = sum(row.norms for row in rows), sum(len(row.left) for row in rows)
    whole = sum(not row.left for row in rows)
    worst = [max(getattr(row, name) for row in rows) for name in ("single", "double")]
    total = f"{norms - left} of {norms} batch norms of {len(rows)} models are folded, all of them "
    total += f"in {whole} models; the largest difference is {worst[0]:.1e} in float32 and "
    total += f"{worst[1]:.1e} in float64."
    facts = conditions(["torch", "timm", "torchvision"])
    lines = table(HEAD, [row.cells() for row in rows])
    body = "\n\n".join([ABOUT, total, lines, reasons(rows), facts])
    print(body)
    if not options.dry_run:
        write_section("fold-census", body)


if __name__ == "__main__":
    main()
