"""Time and memory to prune, beside Torch-Pruning; verification is apart.

From the model in memory to the smaller one: ours traces, ranks, plans and cuts; theirs builds its
dependency graph, ranks and steps. Each run is a process of its own, the two taking turns. The peak
is that of the process, and above what it had held with the model loaded.

    python benchmarks/prune_speed.py            # prints and writes RESULTS.md
    python benchmarks/prune_speed.py --dry-run  # prints
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from pruning import planned, prune_theirs, with_random_scales
from results import conditions, table, write_section

from normapps.measure.memory import peak_bytes

MODELS = ("resnet50", "densenet121")
RATIO = 0.4

ABOUT = """## Pruning: time and memory

Pruning 40 % of the channels, from the model in memory to the smaller one: ours traces, ranks, plans
and cuts, and leaves the original as it is; Torch-Pruning builds its dependency graph and prunes in
place. Median of {rounds} processes each, taking turns; peak resident memory of the process, and how
much more that is than with the model loaded and run once. The bar is 1×."""

HEAD = ("model", "ours s", "Torch-Pruning s", "ratio", "ours MiB", "Torch-Pruning MiB")
HEAD += ("ours above", "theirs above", "oracle s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print, but write no RESULTS.md")
    parser.add_argument("--one", nargs=2, metavar=("WHOSE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    rows = [row(name, options.rounds) for name in options.models]
    body = f"{ABOUT.format(rounds=options.rounds)}\n\n{table(HEAD, rows)}\n\n"
    body += conditions(["normapps", "torch", "timm", "torch-pruning"])
    print(body)
    if not options.dry_run:
        write_section("prune-speed", body)


def row(name: str, rounds: int) -> list[str]:
    """Measure one model by both, taking turns."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for turn in range(rounds):
        for whose in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            found[whose].append(_in_a_process(whose, name))

    def middle(whose: str, key: str) -> float:
        return statistics.median(each[key] for each in found[whose])

    cells = [f"`{name}`", f"{middle('ours', 'seconds'):.2f}", f"{middle('theirs', 'seconds'):.2f}"]
    cells.append(f"{middle('ours', 'seconds') / middle('theirs', 'seconds'):.2f}×")
    for key in ("peak", "above"):
        cells += [f"{middle(whose, key) / 2**20:.0f}" for whose in ("ours", "theirs")]
    return [*cells, f"{middle('ours', 'oracle'):.2f}"]


def _in_a_process(whose: str, name: str) -> dict[str, float]:
    command: Sequence[str] = [sys.executable, __file__, "--one", whose, name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(whose: str, name: str) -> dict[str, float]:
    """Prune once in this process."""
    import torch_pruning  # noqa: F401 -- loaded in both cases, so that the peaks compare

    from normapps.graph.oracle import difference_of, silenced
    from normapps.graph.surgery import slim_model
    from normapps.graph.trace import trace_channels

    model, x = with_random_scales(name)
    gc.collect()
    _reset_peak()
    before, start = peak_bytes(), time.perf_counter()
    if whose == "theirs":
        prune_theirs(model, x, RATIO)
        return {"seconds": time.perf_counter() - start, "peak": peak_bytes(), **_above(before)}
    graph = trace_channels(model, x)
    keep = planned(model, graph, RATIO)
    slim, _ = slim_model(model, graph, keep)
    found = {"seconds": time.perf_counter() - start, "peak": peak_bytes(), **_above(before)}
    start = time.perf_counter()
    difference = difference_of(silenced(model, graph, keep), slim, x)
    if not difference <= 1e-5:
        raise SystemExit(f"{name}: the slimmed network differs by {difference}")
    return found | {"oracle": time.perf_counter() - start}


def _above(before: int) -> dict[str, Any]:
    return {"above": peak_bytes() - before}


def _reset_peak() -> None:
    """Let the kernel count the peak from what is resident now."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


if __name__ == "__main__":
    main()
