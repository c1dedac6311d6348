"""Put a trained stylization network and its preset styles into `pretrained/`.

    python benchmarks/publish_stylizer.py RUN ../shared/data/pacs_art_painting.tar

copies RUN/model to pretrained/adain-tiny, writes the graphs of `--runtime onnx` beside it and
encodes each painting of `PRESETS` as pretrained/adain-tiny/styles/NAME.style. The paintings
themselves are never copied. With `--mix MODEL --share .35` its weights are .35 of MODEL's, from
which RUN began, and .65 of RUN's (Wortsman et al. 2022, "Model soups"; 2021, WiSE-FT, sec. 3).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from normapps.data.images import Picture
from normapps.data.sources import PictureSource
from normapps.models.folder import load_model, read_manifest, save_model
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
    parser.add_argument("--mix", type=Path, help="the model folder with which RUN began")
    parser.add_argument("--share", type=float, default=0.0, help="of its weights, 0 to 1")
    arguments = parser.parse_args()
    run = arguments.run / "model"
    _publish(run, arguments.mix or run, arguments.share)
    write_runtime(TARGET, TARGET, overwrite=True)
    stylizer, paintings = (
        Stylizer.load(TARGET, device="cpu", dtype="float32"),
        PictureSource([arguments.paintings]),
    )
    for name, index in PRESETS.items():
        style = stylizer.style(Picture(paintings.load(index)), name=name)
        style.save(TARGET / "styles" / f"{name}.style", overwrite=True)
        print(f"{name:12} {paintings.name(index)}")


def _publish(run: Path, mix: Path, share: float) -> None:
    """Write the weights, `share` of them `mix`'s, in half precision; card and styles stay."""
    model, mixed = load_model(run), load_model(mix).state_dict()
    state: dict[str, Tensor] = model.state_dict()
    model.load_state_dict(
        {name: share * mixed[name].float() + (1 - share) * state[name].float() for name in state}
    )
    manifest = read_manifest(run)
    save_model(
        TARGET,
        model.half(),
        builder=manifest.builder,
        arguments=manifest.arguments,
        preprocessing=manifest.preprocessing,
        history=[*manifest.history, {"mixed": share}] if share else manifest.history,
        overwrite=True,
    )


if __name__ == "__main__":
    main()
