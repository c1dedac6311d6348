"""How fast a data set is stylized, against the plain loop, in one run.

The plain loop is what bethgelab/stylize-datasets does, written anew: one picture after the other
is opened, a painting drawn and opened, brought to a short side of 512 and encoded again for every
picture, VGG-19 AdaIN (relu4_1, float32, the paper's decoder with random weights: the picture means
nothing, the time does) run with all threads, the result saved by torchvision. A second plain loop
is the same with our network in place of VGG's. Ours is the job of `normapps stylize-dataset`, once
with no style in its cache and once with all.

    python benchmarks/dataset.py --contents PICTURES --styles PAINTINGS
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from results import conditions, table, write_section

from normapps.data.inputs import find_inputs
from normapps.norm import INSTANCE, Moments
from normapps.style.dataset.job import stylize_dataset
from normapps.style.dataset.options import DatasetOptions
from normapps.style.stylizer import Stylizer

BAR = 5.0
PICTURES_A_PAINTING = 16
"""As in Stylized-ImageNet: 1.28 million pictures, 79 thousand paintings."""

PACKAGES = ("normapps", "torch", "torchvision", "pillow", "numpy")
PLAIN, PLAIN_OURS = "plain loop, VGG AdaIN", "plain loop, our network"
COLD, WARM = "stylize-dataset, no style cached", "stylize-dataset, all styles cached"


@dataclass(frozen=True)
class Material:
    """Folders of pictures and paintings, chosen once, and where results go."""

    pictures: Path
    paintings: Path
    work: Path


def main() -> None:
    options = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        material = _material(options, Path(folder))
        cases = _cases(material, options)
        seconds = _timed(cases, options.rounds)
    body = "\n\n".join([_text(seconds, options), _batches(options), conditions(PACKAGES)])
    print(body)
    if not options.dry_run:
        write_section("dataset", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contents", required=True, help="folder of pictures")
    parser.add_argument("--styles", required=True, help="folder of paintings")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--plain", type=int, default=8, help="pictures of the plain loops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="adain-tiny")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _material(options: argparse.Namespace, folder: Path) -> Material:
    """Copy an evenly spread part of the pictures, and as many paintings as fit them."""
    wanted = {"pictures": options.pictures, "paintings": options.pictures // PICTURES_A_PAINTING}
    for name, place in (("pictures", options.contents), ("paintings", options.styles)):
        found = [item.path for item in find_inputs([place]) if item.path]
        (folder / name).mkdir()
        for i in range(max(1, wanted[name])):
            file = found[i * len(found) // max(1, wanted[name])]
            shutil.copy(file, folder / name / f"{i:04}{file.suffix}")
    return Material(folder / "pictures", folder / "paintings", folder)


def _cases(material: Material, options: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Each does its work and returns the number of pictures."""
    stylizer = Stylizer.load(options.model, device="cpu")
    return {
        PLAIN: lambda: _plain_loop(material, _vgg(), options.plain),
        PLAIN_OURS: lambda: _plain_loop(material, _ours(stylizer), options.plain),
        COLD: lambda: _job(material, stylizer, cold=True),
        WARM: lambda: _job(material, stylizer, cold=False),
    }


def _timed(cases: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Seconds a picture, the cases in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(1 + rounds):
        for name, case in cases.items():
            print(f"round {number}: {name}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            done = case()
            seconds[name].append((time.perf_counter() - start) / done)
    return {name: values[1:] for name, values in seconds.items()}


Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Content and style, (1, 3, H, W) in [0, 1], to the result."""


def _plain_loop(material: Material, network: Network, pictures: int) -> int:
    from torchvision.transforms import Compose, Resize, ToTensor
    from torchvision.utils import save_image

    out = _fresh(material.work / "plain")
    contents = sorted(material.pictures.iterdir())[:pictures]
    paintings = sorted(material.paintings.iterdir())
    read, read_style = ToTensor(), Compose([Resize(512), ToTensor()])
    for path in contents:
        content = read(Image.open(path).convert("RGB"))[None]
        style = read_style(Image.open(random.choice(paintings)).convert("RGB"))[None]
        with torch.no_grad():
            save_image(network(content, style), out / path.name, padding=0)
    return len(contents)


def _vgg() -> Network:
    from vgg_adain import VggAdaIN

    network = _VGG.setdefault("network", VggAdaIN())

    def paint(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        height, width = (size // 8 * 8 for size in content.shape[2:])
        return network(content[..., :height, :width], network.moments(style))

    return paint


_VGG: dict[str, Any] = {}
"""Loaded once: the loop's own time counts, not the reading of weights."""


def _ours(stylizer: Stylizer) -> Network:
    def paint(content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        painted: torch.Tensor = stylizer(content, stylizer.style(style, size=max(style.shape)))
        return painted

    return paint


def _job(material: Material, stylizer: Stylizer, *, cold: bool) -> int:
    cache = material.work / "cache"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    options = DatasetOptions(device="cpu", cache=str(cache))
    out = _fresh(material.work / "out")
    job = stylize_dataset(options, material.pictures, material.paintings, out, stylizer=stylizer)
    results = list(job)
    if any(result.error for result in results):
        raise SystemExit(next(result.error for result in results if result.error))
    return len(results)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _text(seconds: dict[str, list[float]], options: argparse.Namespace) -> str:
    middle = {name: median(values) for name, values in seconds.items()}
    rows = [
        [
            name,
            f"{1 / middle[name]:.2f}",
            f"{middle[PLAIN] / middle[name]:.1f}×",
            f"{middle[PLAIN_OURS] / middle[name]:.1f}×",
            f"{min(values):.3f}–{max(values):.3f}",
        ]
        for name, values in seconds.items()
    ]
    speed = middle[PLAIN] / middle[COLD]
    verdict = "reached" if speed >= BAR else "missed"
    head = ["", "pictures a second", "to VGG's loop", "to our network's loop", "s a picture"]
    return "\n\n".join(
        [
            "## A whole data set (`normapps stylize-dataset`)",
            f"Pictures of `{Path(options.contents).name}`, {PICTURES_A_PAINTING} to a painting of "
            f"`{Path(options.styles).name}`, as in Stylized-ImageNet. The plain loop is "
            "stylize-datasets' way, written anew: picture after picture, the painting opened, "
            "brought to a short side of 512 and encoded for each, VGG-19 AdaIN in float32 (decoder "
            "of the paper's shape with random weights) with all threads; then the same loop with "
            "our network in place of VGG's. Ours is the whole job without the loading of the "
            "network: walk, draw, styles measured, read, paint, write, manifest; precision auto. "
            f"Median of {options.rounds} rounds in turn; least and greatest in the last column.",
            table(head, rows),
            f"- bar: {BAR:.0f}× the plain loop of stylize-datasets, no style cached: {speed:.1f}×, "
            f"{verdict}",
        ]
    )


def _batches(options: argparse.Namespace) -> str:
    """The network alone, one thread, pictures of one size alone and eight together."""
    network = Stylizer.load(options.model, device="cpu", dtype="float32").renderer.network  # type: ignore[attr-defined]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            rows = [
                _batch_row(network, *size) for size in ((32, 32), (64, 64), (224, 224), (376, 496))
            ]
    finally:
        torch.set_num_threads(before)
    head = ["picture", "alone, ms", "of 8 together, ms", "gain", "pixels that differ"]
    return (
        "Batches, measured and left out on the CPU: the network alone, float32, one thread, eight "
        "pictures of one size and style alone and together.\n\n" + table(head, rows)
    )


def _batch_row(network: Any, height: int, width: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    shape = (8, 3, height, width)
    coarse = torch.rand((8, 3, height // 8, width // 8), generator=generator)
    images = torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic").clamp(0, 1)
    style = tuple(Moments.of(x, INSTANCE) for x in network.encode(images[:1]))

    def paint(batch: torch.Tensor) -> torch.Tensor:
        out = network.decode(network.encode(batch), style)
        return out.clamp(0, 1).mul(255).round().to(torch.uint8)

    def alone() -> torch.Tensor:
        return torch.cat([paint(image[None]) for image in images])

    one, eight = (_best(work) / 8 * 1000 for work in (alone, lambda: paint(images)))
    differ = (alone() != paint(images)).float().mean()
    return [
        f"{height}×{width}",
        f"{one:.2f}",
        f"{eight:.2f}",
        f"{one / eight:.2f}×",
        f"{float(differ):.1e}",
    ]


def _best(work: Callable[[], object], rounds: int = 7) -> float:
    """Least seconds of some rounds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
