"""Every test-time method on real photographs, clean and corrupted: EfficientNet-Lite0.

`adapt_streams.py --shared ../shared --runs FOLDER` runs what FOLDER lacks of `normapps adapt
evaluate`, for one batch size after the other, and writes the tables of what it was asked for into
RESULTS.md. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from lite0 import write
from results import conditions, table, write_section

from normapps.adapt.evaluate_options import EvaluateOptions
from normapps.adapt.evaluation import evaluate
from normapps.adapt.methods import list_methods
from normapps.adapt.scores import Row
from normapps.allocator import keep_freed_memory
from normapps.files import write_text

KINDS = ("gaussian_noise", "defocus_blur", "contrast", "fog", "jpeg", "pixelate")
CORRUPTIONS = tuple(f"{kind}:{severity}" for kind in KINDS for severity in (3, 5))


def main() -> None:
    options = _arguments()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    place = _listed(options.shared / "data" / "imagenet_sample_1000.tar", options.runs / "photos")
    model = str(write(options.runs / "lite0"))
    parts = []
    for size in options.batch_size:
        chosen = EvaluateOptions(
            methods=tuple(options.methods),
            corrupt=tuple(options.corrupt),
            batch_size=(size,),
            limit=options.limit,
            seeds=options.seeds,
            device=options.device,
        )
        done = evaluate(model, str(place), chosen, options.runs / "cells", _say, _advance)
        parts.append(f"Batches of {size}:\n\n{_matrix(done.rows, options.methods)}")
    body = "\n\n".join(
        [
            f"## Test-time methods on photographs{options.title}",
            f"EfficientNet-Lite0 on {options.limit} of 1000 photographs (not an ImageNet figure),"
            " one shift each: accuracy in % and half its 95 % interval (Wilson); below the accuracy"
            " the last row has seconds a picture, the mean over the columns.",
            *parts,
            conditions(("normapps", "torch", "timm", "albumentations"), options.device),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section(options.section, body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/adapt-streams"))
    parser.add_argument("--methods", nargs="+", default=list(list_methods()))
    parser.add_argument("--corrupt", nargs="*", default=list(CORRUPTIONS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[50, 200, 8, 1])
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--section", default="adapt-streams", help="of RESULTS.md")
    parser.add_argument("--title", default="", help="what the section's title says beside")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _listed(tar: Path, folder: Path) -> Path:
    """Extract the photographs and list them with their classes: the order of their names."""
    place = folder.with_suffix(".txt")
    if not place.exists():
        with tarfile.open(tar) as file:
            file.extractall(folder, filter="data")
        names = sorted(each for each in folder.rglob("*") if each.is_file())
        lines = [f"{name.relative_to(place.parent)}\t{i}\n" for i, name in enumerate(names)]
        write_text(place, "".join(lines))
    return place


def _matrix(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Domains down, methods across."""
    found = {(row.domain, row.method): row for row in rows}
    domains = list(dict.fromkeys(row.domain for row in rows))
    lines = [
        [domain, *(_cell(found.get((domain, method))) for method in methods)] for domain in domains
    ]
    seconds = []
    for method in methods:
        taken = [row.seconds for row in rows if row.method == method and not row.note]
        seconds.append(f"{sum(taken) / len(taken):.2g} s" if taken else "–")
    return table(["pictures", *methods], [*lines, ["seconds", *seconds]])


def _cell(row: Row | None) -> str:
    if row is None or row.accuracy is None:
        least = re.search(r"needs \d+", row.note) if row and row.note else None
        return least[0] if least else "–"
    return f"{100 * row.accuracy.mean:.1f} ± {100 * row.accuracy.margin:.1f}"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _advance(name: str, total: int) -> None:
    print(f"\r{name} ({total} batches in all)   ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
