"""`gan.py study`: SNGAN on Fashion-MNIST under several normalizations, scored alike.

Two lengths: 20 000 steps on a GPU, and one that a single core of a CPU gets done in under an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gan_results import REPOSITORY, conditions_of, publish, say
from PIL import Image, ImageDraw
from results import table

from normapps.engine.device import resolve_device
from normapps.files import atomic_path
from normapps.gan.compare import Outcome
from normapps.gan.compare_job import Compared, gan_compare
from normapps.gan.compare_options import CompareOptions, Variant
from normapps.gan.compare_report import run_table, score_names, variant_table
from normapps.gan.opening import GENERATOR, open_generator
from normapps.gan.pages import grid
from normapps.gan.sampling import latents, sample
from normapps.measure.report import Table, shown
from normapps.models.folder import MANIFEST

VARIANTS = (Variant("none"), Variant("sn"), Variant("gn"), Variant("sn", "wc"))
FULL: dict[str, Any] = {
    "width": 64, "d_width": 64, "steps": 20_000, "n_dis": 5, "score_every": 2500,
    "sample_every": 2500, "fakes": 10_000,
}  # fmt: skip
SHORT: dict[str, Any] = {
    "width": 32, "d_width": 32, "steps": 1000, "n_dis": 1, "gen_batch_size": 64, "lr_d": 4e-4,
    "ema": 0.99, "score_every": 250, "sample_every": 0, "save_every": 125, "fakes": 5000,
    "standing": 2000,
}  # fmt: skip
"""What is trained on a GPU, and on a CPU: there with one discriminator step a generator step, at
twice the rate, and with an average that reaches a hundred steps back."""

SHEET = REPOSITORY / "docs" / "images" / "gan-fashion-mnist.png"
COLUMNS, ROWS, LABEL, GAP = 14, 2, 64, 8
"""Pictures of a variant on the sheet; pixels left of them for its name, and between variants."""


def study(options: argparse.Namespace) -> None:
    """Compare normalizations on Fashion-MNIST."""
    is_short = resolve_device(options.device).type == "cpu"
    chosen = _chosen(options, SHORT if is_short else FULL)
    folder = options.runs / "study"
    found = gan_compare(folder, chosen, variants=VARIANTS, say=say)
    page = folder / SHEET.name if options.dry_run else SHEET
    has_page = _sheet(found.outcomes, page)
    body = [
        "## GANs on Fashion-MNIST by normalization",
        f"SNGAN for 28 px, width {chosen.width} in both networks, {chosen.steps} steps, "
        f"{chosen.n_dis} discriminator step{'s' * (chosen.n_dis > 1)} of {chosen.batch_size} "
        f"pictures each, rates {chosen.lr_g:g} and {chosen.lr_d:g}, hinge loss, seeds "
        f"{chosen.seed} to {chosen.seed + chosen.seeds - 1}. {_SHORTENED if is_short else ''}"
        "none, sn, gn: what the discriminator is normalized by; sn-wc: sn, and whitening and "
        "colouring in the place of the generator's batch norms.",
        "\n".join(f"- {line}" for line in found.report.lead[1:]),
        *_tables(found),
        *([] if is_short else [f"Verdict of `gan compare`: {found.report.verdict.reason}."]),
        *([f"![{COLUMNS * ROWS} pictures of each norm, of the same latents](../docs/images/"
           f"{SHEET.name})"] if has_page else []),
        conditions_of(options),
    ]  # fmt: skip
    publish("gan-study", body, options)


_SHORTENED = (
    "**Shortened**: made without a GPU, so far too short to rank the norms; 20 000 steps with 5 "
    "discriminator steps each are the full length. "
)


def _chosen(options: argparse.Namespace, recipe: dict[str, Any]) -> CompareOptions:
    given: dict[str, Any] = {}
    if options.steps:
        given = {"steps": options.steps, "score_every": max(1, options.steps // 4)}
    if options.width:
        given |= {"width": options.width, "d_width": options.width}
    if options.fakes:
        given["fakes"] = options.fakes
    return CompareOptions(
        data=options.data, config="sngan-28", seeds=options.seeds,
        extractor=options.extractor or "fmnist-cnn", batch_size=options.batch_size,
        device=options.device, precision=options.precision, **(recipe | given),
    )  # fmt: skip


def _tables(found: Compared) -> list[str]:
    name = next(iter(score_names(found.outcomes)), "score")
    return [
        _markdown(variant_table(found.outcomes)),
        _markdown(run_table(found.outcomes)),
        f"{name} by step, mean over the seeds; curves of the losses are in the runs' report.html:",
        _by_step(found.outcomes),
    ]


def _by_step(outcomes: list[Outcome]) -> str:
    steps = sorted({step for each in outcomes for step in each.scores})
    rows = []
    for variant in dict.fromkeys(each.variant for each in outcomes):
        runs = [each.scores for each in outcomes if each.variant == variant]
        cells = []
        for step in steps:
            values = [next(iter(run[step].values())) for run in runs if step in run]
            cells.append(shown(sum(values) / len(values)) if values else "–")
        rows.append([variant.name, *cells])
    return table(["norm", *map(str, steps)], rows)


def _markdown(found: Table) -> str:
    return table(list(found.columns), [[shown(each) for each in row] for row in found.rows])


def _sheet(outcomes: list[Outcome], path: Path) -> bool:
    """Write one picture with some of every variant's first run; return whether there are any."""
    first: dict[str, Image.Image] = {}
    for each in outcomes:
        if each.variant.name not in first and (each.folder / GENERATOR / MANIFEST).is_file():
            opened = open_generator(each.folder)
            made = sample(opened.generator, latents(range(COLUMNS * ROWS), opened.latent))
            first[each.variant.name] = grid(made, columns=COLUMNS)
    if not first:
        return False
    width, height = next(iter(first.values())).size
    page = Image.new("L", (LABEL + width, (height + GAP) * len(first) - GAP), 255)
    for row, (name, pictures) in enumerate(first.items()):
        top = row * (height + GAP)
        ImageDraw.Draw(page).text((6, top + height // 2 - 6), name, fill=0)
        page.paste(pictures.convert("L"), (LABEL, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG", optimize=True)
    return True
