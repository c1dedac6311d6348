"""What the verdict of `adapt run` goes by, on photographs clean and corrupted, with and without
labels: the table in `normapps.adapt.verdict`.

Needs the research data beside the checkout and the package of `normapps.models.lite0`.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from peers import SHARED
from results import conditions, table, write_section

from normapps.adapt.run import gather
from normapps.adapt.run_options import AdaptOptions
from normapps.adapt.trial import try_method
from normapps.adapt.verdict import Evidence, judge
from normapps.data.corruptions import Corruption, parse_corruption
from normapps.data.feed import Feed
from normapps.data.pictures import Pictures
from normapps.measure.interval import Estimate
from normapps.models.lite0 import open_lite0

CORRUPTIONS = ("clean", "saturate:3", "jpeg:5", "fog:4", "contrast:3", "gaussian_noise:3")
HEAVY = ("pixelate:5", "defocus_blur:5", "gaussian_noise:5", "contrast:5")
METHODS = {"adabn": AdaptOptions(batch_size=50), "prior 64": AdaptOptions(method="prior", prior=64)}
PACKAGES = ("normapps", "torch", "timm")
HEAD = ("pictures", "method", "distance", "halves", "confidence", "diversity", "accuracy %")


def main() -> None:
    options = _arguments()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = _listed(Path(folder))
        for name in options.corruptions:
            for method in options.methods:
                print(f"{name}: {method}", file=sys.stderr, flush=True)
                rows.append(_row(name, method, place, options))
    body = "\n\n".join(
        [
            "## The verdict of `adapt run`",
            f"EfficientNet-Lite0 on {options.pictures} of 1000 photographs; distance: the median"
            " layer's, nats; halves: the same between halves of the pictures; then before → after,"
            " and the verdicts with the labels and without.",
            table((*HEAD, "with labels", "without"), rows),
            conditions(PACKAGES, options.device),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section("verdict", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--corruptions", nargs="+", default=[*CORRUPTIONS, *HEAVY])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=METHODS)
    return parser.parse_args()


def _listed(folder: Path) -> Path:
    """Unpack the photographs, with a list of their classes: the place in sorted order."""
    with tarfile.open(SHARED / "data" / "imagenet_sample_1000.tar") as tar:
        tar.extractall(folder, filter="data")
    files = sorted(folder.rglob("*.jpg"))
    lines = [f"{file.relative_to(folder)} {i}" for i, file in enumerate(files)]
    (folder / "list.txt").write_text("\n".join(lines))
    return folder / "list.txt"


def _row(name: str, method: str, place: Path, options: argparse.Namespace) -> list[str]:
    opened = open_lite0()
    corruption = None if name == "clean" else Corruption(*parse_corruption(name), 0)
    chosen = Pictures(place, opened.preprocessing, limit=options.pictures, transform=corruption)
    device = torch.device(options.device)
    feed = Feed(chosen, 50, device)
    trial = try_method(opened.model.to(device), feed, METHODS[method], lambda stage: None)
    evidence, _ = gather(trial, opened, chosen)
    unlabelled = replace(evidence, accuracy=None, difference=None)
    verdicts = [judge(each).verdict for each in (evidence, unlabelled)]
    return [name, method, *_figures(evidence), *verdicts]


def _figures(evidence: Evidence) -> list[str]:
    answers = evidence.agreement.before, evidence.agreement.after
    pair: tuple[Estimate, ...] = evidence.accuracy or ()
    return [
        f"{median(evidence.shift):.3f}",
        f"{median(evidence.chance):.3f}",
        " → ".join(f"{each.confidence:.2f}" for each in answers),
        " → ".join(f"{each.diversity:.2f}" for each in answers),
        " → ".join(f"{100 * each.mean:.1f}" for each in pair),
    ]


if __name__ == "__main__":
    main()
