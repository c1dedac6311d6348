"""Translation without pairs on real data: PACS photographs and paintings, both ways.

`translate.py --shared ../shared --runs FOLDER` trains what FOLDER does not have yet and writes the
table into RESULTS.md: Fréchet and kernel distance to the other domain before and after, of pictures
that training never saw. A run that is interrupted goes on where it stopped; `--stop-after` takes
only so many steps of it at once.

The recipe is as short as a CPU allows; `--full` is for a GPU, at 128 pixels.

`--memory` trains nothing: it prints what translating large pictures takes on a CPU.
"""

from __future__ import annotations

import argparse
import tarfile
import time
from pathlib import Path
from typing import Any

import torch
from results import conditions, table, write_section

from normapps.engine.device import evaluating
from normapps.gan.evaluation.scores import shown
from normapps.gan.translation.evaluate import Comparison, evaluate_translation
from normapps.gan.translation.options import TranslateEvaluateOptions, TranslateOptions
from normapps.gan.translation.strips import translate
from normapps.gan.translation.train import train_unpaired
from normapps.measure.memory import peak_bytes
from normapps.models.folder import read_manifest
from normapps.models.translator import adalin_generator

DOMAINS = ("photo", "art_painting")
HELD_OUT = 5
"""Every how many-th picture is kept for the distances."""
SHORT = {"size": 64, "steps": 1500, "batch_size": 2, "width": 24, "blocks": 2, "ema": 0.995}
SHORT |= {"lr": 3e-4, "cycle_weight": 5.0, "identity_weight": 2.0}
FULL = {"size": 128, "steps": 40_000, "batch_size": 8}
LARGE = ((500, 375), (1000, 750), (2000, 1500))
"""Width and height of the pictures of `--memory`; the peak is a process's, so the largest last."""


def main() -> None:
    """Train, measure, publish."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    if options.memory:
        _print_memory()
        return
    places = [_unpacked(options.shared / "data" / f"pacs_{name}.tar", options.runs, name)
              for name in DOMAINS]  # fmt: skip
    recipe: dict[str, Any] = {**(FULL if options.full else SHORT)}
    recipe |= {"steps": options.steps} if options.steps else {}
    chosen = TranslateOptions(
        source=str(places[0] / "train"),
        target=str(places[1] / "train"),
        device=options.device,
        precision=options.precision,
        stop_after=options.stop_after,
        **recipe,
    )
    folder = options.runs / ("full" if options.full else "short")
    made = train_unpaired(chosen, folder)
    if read_manifest(made).history[-1]["step"] < chosen.steps:
        print(f"{folder}: stopped on its way; the same call goes on")
        return
    found = [_measured(folder, places, back, options) for back in (False, True)]
    _publish(found, chosen, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/translate"))
    parser.add_argument("--full", action="store_true", help="128 pixels, on a GPU")
    parser.add_argument("--steps", type=int, help="of the whole run, else the recipe's")
    parser.add_argument("--stop-after", type=int, default=0, help="steps of this call (0: all)")
    parser.add_argument("--extractor", default="lite0", help="as gan evaluate takes it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true", help="of large pictures; nothing else")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _print_memory() -> None:
    """Print seconds and peak memory of a generator of the default width, weights as drawn."""
    generator, start, rows = adalin_generator(), peak_bytes(), []
    for width, height in LARGE:
        began = time.perf_counter()
        with evaluating(generator):
            translate(generator, torch.rand(1, 3, height, width) * 2 - 1)
        seconds, above = time.perf_counter() - began, peak_bytes() - start
        cells = f"{width}×{height}", f"{seconds:.1f}", f"{peak_bytes() / 1e9:.2f}"
        rows.append([*cells, f"{above / (width * height):.0f}"])
    head = ["picture", "seconds", "peak of the process, GB", "bytes a pixel above its start"]
    print(table(head, rows), conditions(("normapps", "torch"), "cpu"), sep="\n\n")


def _unpacked(archive: Path, runs: Path, name: str) -> Path:
    """Unpack a domain into `train` and `test`, once; return the folder of both."""
    place = runs / name
    if place.exists():
        return place
    with tarfile.open(archive) as tar:
        files = sorted((m for m in tar if m.isfile()), key=lambda member: member.name)
        for number, member in enumerate(files):
            part = "test" if number % HELD_OUT == HELD_OUT - 1 else "train"
            member.name = member.name.replace("/", "-")
            tar.extract(member, runs / f"{name}.part" / part, filter="data")
    (runs / f"{name}.part").rename(place)
    return place


def _measured(
    folder: Path, places: list[Path], back: bool, options: argparse.Namespace
) -> Comparison:
    source, target = (str(each / "test") for each in (places[::-1] if back else places))
    chosen = TranslateEvaluateOptions(
        model=str(folder),
        back=back,
        source=source,
        target=target,
        extractor=options.extractor,
        device=options.device,
    )
    return evaluate_translation(chosen)


def _publish(
    found: list[Comparison], chosen: TranslateOptions, options: argparse.Namespace
) -> None:
    rows = []
    for way, each in zip(("photo → art", "art → photo"), found, strict=True):
        numbers = each.numbers()
        for name in (key for key in numbers["before"] if not key.endswith("_std")):
            cells = [shown(name, numbers[side][name]) for side in ("before", "after", "floor")]
            rows.append([f"{way}, {name}", *cells])
    body = "\n\n".join(
        [
            "## Translation without pairs: PACS photographs and paintings",
            f"{chosen.size} px, {chosen.steps} steps of {chosen.batch_size} pictures of each"
            f" domain. Every {HELD_OUT}th picture was held out and is what is measured on; floor:"
            " one half of the held-out target against the other. The Fréchet distance of so few"
            " pictures is far too large, before as after; the kernel distance is not.",
            table(["way, distance", "before", "after", "floor"], rows),
            "\n".join(f"- {each.line()}" for each in found),
            conditions(("normapps", "torch", "timm"), options.device),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section("translate-full" if options.full else "translate", body)


if __name__ == "__main__":
    main()
