"""Put a trained stylization network and its preset styles into `pretrained/`.

    python benchmarks/publish_stylizer.py RUN ../shared/data/pacs_art_painting.tar

copies RUN/model to pretrained/adain-tiny, writes the graphs of `--runtime onnx` beside it and
encodes each painting of `PRESETS` as pretrained/adain-tiny/styles/NAME.style. The paintings
themselves are never copied.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from normapps.data.images import Picture
from normapps.data.sources import PictureSource
from normapps.style.onnx.files import write_runtime
from normapps.style.stylizer import Stylizer

PRESETS = {
    "autumn": 1889,
    "baroque": 1757,
    "charcoal": 1250,
    "cubist": 1043,
    "doodle": 1413,
    "dusk": 2032,
    "ember": 920,
    "fauve": 1181,
    "folk": 415,
    "fresco": 1710,
    "garden": 1328,
    "gold": 443,
    "harbor": 1397,
    "ice": 1334,
    "ink": 1213,
    "lane": 1564,
    "neon": 734,
    "pastel": 1440,
    "scroll": 1821,
    "shards": 1006,
    "swirl": 1715,
    "watercolor": 1532,
    "winter": 1495,
    "wash": 1522,
}
"""Name by look → index of the painting in the sorted tar."""

TARGET = Path(__file__).resolve().parent.parent / "pretrained" / "adain-tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("paintings")
    arguments = parser.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "model.json"):
        shutil.copy(arguments.run / "model" / name, TARGET / name)
    write_runtime(TARGET, TARGET, overwrite=True)
    stylizer, paintings = (
        Stylizer.load(TARGET, device="cpu", dtype="float32"),
        PictureSource([arguments.paintings]),
    )
    for name, index in PRESETS.items():
        style = stylizer.style(Picture(paintings.load(index)), name=name)
        style.save(TARGET / "styles" / f"{name}.style", overwrite=True)
        print(f"{name:12} {paintings.name(index)}")


if __name__ == "__main__":
    main()
