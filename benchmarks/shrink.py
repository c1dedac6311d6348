"""Shrink a tar of pictures for a machine to which little can be carried.

`shrink.py BYTES OUT_FOLDER TAR…` writes one tar of WebP pictures for each given tar, under the same
names but for the suffix, so that order and held-out pictures stay those of the originals. The
highest quality at which all of them fit into BYTES is taken.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from normapps.data.images import resize
from normapps.data.sources import PictureSource

SHORT_SIDE = 224
QUALITIES = (90, 80, 70, 60, 50, 40, 30)
SAMPLE = 25
"""Every how many-th picture is encoded to foresee the size."""


def main() -> None:
    budget, folder, tars = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    sources = {Path(name).name: PictureSource([name]) for name in tars}
    quality = next((q for q in QUALITIES if _foreseen(sources, q) < 0.97 * budget), QUALITIES[-1])
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(_write(source, folder / name, quality) for name, source in sources.items())
    print(f"{total / 1e6:.1f} MB at WebP quality {quality}, short side {SHORT_SIDE}")
    if total > budget:
        sys.exit(f"error: more than the {budget / 1e6:.1f} MB allowed")


def _foreseen(sources: dict[str, PictureSource], quality: int) -> int:
    sampled = (_packed(s, i, quality) for s in sources.values() for i in range(0, len(s), SAMPLE))
    return SAMPLE * sum(512 + len(data) + 256 for data in sampled)


def _write(source: PictureSource, path: Path, quality: int) -> int:
    with tarfile.open(path, "w") as tar:
        for index in range(len(source)):
            data = _packed(source, index, quality)
            info = tarfile.TarInfo(str(Path(source.name(index)).with_suffix(".webp")))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.stat().st_size


def _packed(source: PictureSource, index: int, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_small(source.load(index))).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def _small(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, SHORT_SIDE / min(height, width))
    return resize(pixels, round(width * scale), round(height * scale))


if __name__ == "__main__":
    main()
