"""Pruning on every family: what is verified, left whole or unsupported, beside Torch-Pruning.

Random scales, a global threshold at --ratio, and the same oracle for both: the doomed channels
silenced in a copy of the network must give the same output. Results are kept model by model, so
that a run that was cut off goes on; a model in the file of runs is not run again.

    python benchmarks/prune_census.py            # the 29 models of the bar
    python benchmarks/prune_census.py --all      # and the smallest model of every family
    python benchmarks/prune_census.py --models resnet18 mixnet_s --fresh --dry-run
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import census
import torch
from pruning import (
    NAMES,
    macs,
    parameters,
    planned,
    prune_theirs,
    silenced_like,
    with_random_scales,
)
from results import conditions, table, write_section
from torch import Tensor, nn

from normapps.errors import NormappsError
from normapps.graph.graph import ChannelGraph
from normapps.graph.oracle import difference_of, slim_verified
from normapps.graph.surgery import slim_model
from normapps.graph.trace import trace_channels

TOLERANCE = 1e-5
Value = TypeVar("Value")

ABOUT = """## Pruning, family by family

Scales uniform in 0.1…1.9, {percent:.0f} % of the channels by one global threshold. *verified*: the
slimmed network gives what the original gives with the doomed channels silenced (γ = β = 0 in a
copy), relative difference ≤ 1e-5. *whole*: groups with channels that may not go, or that were put
back by the oracle (in brackets). MACs (of convolutions and matrix products, as torch counts them)
and parameters: what is left. Seconds: tracing, cutting, the oracle. Torch-Pruning: BNScalePruner,
global, the same scales and ratio, the classifier kept, the same oracle."""

HEAD = ("model", "verdict", "difference", "groups whole", "MACs left", "parameters left")
HEAD += ("trace s", "cut s", "oracle s", "Torch-Pruning", "its MACs left", "its s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", help="of timm; without it the 29 of the bar")
    parser.add_argument("--all", action="store_true", help="every family's smallest model, too")
    parser.add_argument("--ratio", type=float, default=0.4, help="fraction of channels to remove")
    parser.add_argument("--runs", type=Path, default=Path("runs/prune_census"))
    parser.add_argument("--fresh", action="store_true", help="run models again that the file has")
    parser.add_argument("--dry-run", action="store_true", help="print, but write no RESULTS.md")
    options = parser.parse_args()
    names = list(options.models or NAMES) + (smallest() if options.all else [])
    rows = run(list(dict.fromkeys(names)), options.ratio, options.runs, options.fresh)
    body = report(rows, options.ratio)
    print(body)
    if not options.dry_run:
        write_section("prune-census", body)


def smallest() -> list[str]:
    """Names of each family's smallest model with a 2d batch norm, and of some with other blocks."""
    return [*census.SMALLEST.values(), *(name for more in census.MORE.values() for name in more)]


def run(names: Sequence[str], ratio: float, runs: Path, fresh: bool) -> list[dict[str, Any]]:
    """Examine models; what the file in `runs` has already is taken from there."""
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / f"{ratio:g}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {row["model"]: row for row in map(json.loads, lines)}
    for name in names:
        if fresh or name not in known:
            known[name] = examine(name, ratio)
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(known[name]) + "\n")
        print(*cells(known[name]), sep="  ", flush=True)
    return [known[name] for name in names]


def examine(name: str, ratio: float) -> dict[str, Any]:
    """Prune one model by both, each in a copy, and judge both."""
    model, x = with_random_scales(name)
    row = {"model": name, "macs": macs(model, x), "parameters": parameters(model)}
    for key, judge in (("ours", ours), ("theirs", theirs)):
        try:
            row[key] = judge(copy.deepcopy(model), x, ratio)
        except Exception as error:  # anybody's code may raise anything, and a census goes on
            kind = "refused" if isinstance(error, NormappsError) else type(error).__name__
            row[key] = {"failed": kind, "why": " ".join(str(error).split())[:200]}
    return row


def ours(model: nn.Module, x: Tensor, ratio: float) -> dict[str, Any]:
    graph, trace = timed(lambda: trace_channels(model, x))
    keep = planned(model, graph, ratio)
    _, cut = timed(lambda: _cut(model, graph, keep))
    slimmed, whole = timed(lambda: slim_verified(model, graph, keep, x, TOLERANCE))
    pinned = [group for group in graph.groups if group.layers and group.reason is not None]
    return {
        "difference": slimmed.difference,
        "left": list(slimmed.left),
        "pinned": sorted({(group.name, group.reason) for group in pinned}),
        "groups": sum(bool(group.layers) for group in graph.groups),
        "macs": macs(slimmed.model, x),
        "counted": graph.macs(slimmed.keep),
        "parameters": parameters(slimmed.model),
        "seconds": [trace, cut, max(whole - cut, 0.0)],
    }


def _cut(model: nn.Module, graph: ChannelGraph, keep: Any) -> nn.Module | None:
    try:
        return slim_model(model, graph, keep)[0]
    except NormappsError:  # the oracle finds out which group it was
        return None


def theirs(model: nn.Module, x: Tensor, ratio: float) -> dict[str, Any]:
    pruned, seconds = timed(lambda: prune_theirs(copy.deepcopy(model), x, ratio))
    difference = difference_of(silenced_like(model, pruned), pruned, x, TOLERANCE)
    return {
        "difference": difference,
        "macs": macs(pruned, x),
        "parameters": parameters(pruned),
        "seconds": seconds,
    }


def timed(work: Callable[[], Value]) -> tuple[Value, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def cells(row: dict[str, Any]) -> list[str]:
    """Return a model's line of the table."""
    mine, other = row["ours"], row["theirs"]
    line = [f"`{row['model']}`", verdict(mine)]
    if "failed" in mine:
        line += [mine["why"], *[""] * 6]
    else:
        whole = f"{len(mine['pinned'])} of {mine['groups']}"
        whole += f" ({len(mine['left'])})" if mine["left"] else ""
        line += [f"{mine['difference']:.0e}", whole, share(row, mine, "macs")]
        line += [share(row, mine, "parameters"), *(f"{each:.2f}" for each in mine["seconds"])]
    line.append(verdict(other))
    if "failed" in other:
        return [*line, "", ""]
    return [*line, share(row, other, "macs"), f"{other['seconds']:.2f}"]


def verdict(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"**{result['failed']}**"
    if not result["difference"] <= TOLERANCE:
        return f"**differs by {result['difference']:.0e}**"
    return "verified"


def share(row: dict[str, Any], result: dict[str, Any], key: str) -> str:
    return f"{100 * result[key] / row[key]:.0f} %"


def report(rows: Sequence[dict[str, Any]], ratio: float) -> str:
    """Return the section of RESULTS.md."""
    parts = [ABOUT.format(percent=100 * ratio), summary(rows), table(HEAD, [*map(cells, rows)])]
    parts += [reasons(rows), conditions(["normapps", "torch", "timm", "torch-pruning"])]
    return "\n\n".join(part for part in parts if part)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Say in a sentence how many were verified, of those of the bar and of all."""

    def passed(some: Sequence[dict[str, Any]], key: str) -> int:
        return sum(verdict(row[key]) == "verified" for row in some)

    bar = [row for row in rows if row["model"] in NAMES]
    lose = [r for r in bar if "macs" in r["ours"] and r["ours"]["macs"] <= 0.75 * r["macs"]]
    text = f"Of the {len(bar)} models of the bar {passed(bar, 'ours')} are verified"
    text += f" (Torch-Pruning: {passed(bar, 'theirs')}), {len(lose)} lose at least 25 % of their"
    text += f" MACs; of all {len(rows)} models {passed(rows, 'ours')} are verified"
    return f"{text} (Torch-Pruning: {passed(rows, 'theirs')})."


def reasons(rows: Sequence[dict[str, Any]]) -> str:
    """List what was left whole, and why, a line a model."""
    lines = []
    for row in rows:
        said: dict[str, int] = {}
        for _, why in [*row["ours"].get("pinned", ()), *row["ours"].get("left", ())]:
            said[why] = said.get(why, 0) + 1
        if said:
            parts = (f"{why} ({count})" if count > 1 else why for why, count in said.items())
            lines.append(f"- `{row['model']}`: {'; '.join(parts)}")
    return "Left whole (groups):\n\n" + "\n".join(lines) if lines else ""


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
