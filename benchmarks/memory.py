"""Peak memory against megapixels: `python benchmarks/memory.py`.

Each picture is painted in a process of its own, once from pixels in memory to pixels in memory and
once by the whole command, JPEG to JPEG. Beside the peak stands what two 8-bit pictures take, the
one that is read and the one that is painted: the least that any stylizer of this kind needs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

MAX_SECONDS = 3600.0
SIZES = ("1200x800", "2400x1600", "4800x3200", "7200x4800", "12000x8000")

_HEADER = (
    "picture",
    "megapixels",
    "two pictures",
    "in memory",
    "less the start",
    "seconds",
    "command",
    "seconds",
)


def main() -> None:
    options = _arguments()
    if options.paint:
        _paint(Path(options.paint), options)
        return
    from results import conditions, table, write_section

    base = _peak([sys.executable, __file__, "--paint", "none", "--model", options.model])[0]
    rows = [_row(size, base, options) for size in options.sizes]
    rest = f", --method {options.method}" if options.method != "adain" else ""
    body = "\n\n".join(
        [
            "## Memory of large pictures",
            f"`normapps stylize` on photographs of ever more pixels{rest}, with "
            f"{options.masks or 'no'} masks; the peak is of a process that does just this, its "
            f"libraries included. Loading them and the network takes {_mb(base)}.",
            table(_HEADER, rows),
            conditions(("normapps", "torch", "numpy", "pillow")),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section(f"memory{options.masks or ''}", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), metavar="WIDTHxHEIGHT")
    parser.add_argument("--model", default="adain-tiny")
    parser.add_argument("--method", default="adain")
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--masks", type=int, default=0, choices=(0, 1, 2), help="of two styles")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--paint", metavar="PICTURE", help="be the process that is measured")
    return parser.parse_args()


def _row(size: str, base: int, options: argparse.Namespace) -> list[str]:
    width, height = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        photo = _photo(Path(folder), width, height)
        flags = ["--model", options.model, "--method", options.method, "--tile", options.tile]
        masks = ["--masks", str(options.masks)]
        memory, memory_seconds = _peak(
            [sys.executable, __file__, "--paint", str(photo), *flags, *masks]
        )
        command, seconds = _peak(
            [*_command(photo, options), "-o", str(Path(folder, "out.jpg")), *flags]
        )
    least = 2 * 3 * width * height
    figures = [_mb(least), _mb(memory), _mb(memory - base), f"{memory_seconds:.0f}"]
    print(size, *figures, file=sys.stderr, flush=True)
    return [size, f"{width * height / 1e6:.1f}", *figures, _mb(command), f"{seconds:.0f}"]


def _command(photo: Path, options: argparse.Namespace) -> list[str]:
    words = [sys.executable, "-m", "normapps.cli.main", "stylize", str(photo)]
    words += ["--max-pixels", "200000000", "--quiet"]
    for number, style in enumerate(("preset:ink", "preset:fauve")[: 2 if options.masks else 1]):
        words += ["--style", style]
        if number < options.masks:
            words += ["--mask", str(_mask_file(photo, number))]
    return words


def _photo(folder: Path, width: int, height: int) -> Path:
    from skimage import data

    image = Image.fromarray(data.coffee()).resize((width, height), Image.Resampling.BILINEAR)
    image.save(folder / "photo.jpg", quality=92)
    for number in range(2):
        Image.fromarray(_ramp(number)).save(_mask_file(folder / "photo.jpg", number))
    return folder / "photo.jpg"


def _ramp(number: int) -> np.ndarray:
    """A soft mask, 600×400; the second is what the first leaves."""
    row = np.clip(np.arange(600) - 200, 0, 255).astype(np.uint8)
    return np.broadcast_to(255 - row if number else row, (400, 600)).copy()


def _mask_file(photo: Path, number: int) -> Path:
    return photo.with_name(f"mask{number}.png")


def _peak(command: list[str]) -> tuple[int, float]:
    from normapps.measure.process import measure_command

    cost = measure_command(command, timeout=MAX_SECONDS)
    if cost.code or cost.timed_out:
        sys.exit(f"{' '.join(command)}: failed\n{cost.output[-2000:]}")
    return cost.peak_bytes, cost.seconds


def _mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def _paint(path: Path, options: argparse.Namespace) -> None:
    """Paint a picture of the same size as `path`'s, from noise made here, without reading it."""
    from normapps import Stylizer
    from normapps.data.images import Picture
    from normapps.style.masks import read_mask
    from normapps.style.stylizer import resolve_style

    tile = None if options.tile == "auto" else int(options.tile)
    stylizer = Stylizer.load(options.model, device="cpu", tile=tile)
    if str(path) == "none":
        return
    styles = [resolve_style(stylizer, name) for name in ("preset:ink", "preset:fauve")]
    masks = [read_mask(_mask_file(path, number)) for number in range(options.masks)]
    look = list(zip(styles, [*masks, None][:2], strict=True)) if masks else styles[0]
    with Image.open(path) as image:
        shape = (image.height, image.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    stylizer(Picture(pixels), look, method=options.method)


if __name__ == "__main__":
    main()
