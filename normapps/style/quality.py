"""Judging a stylized picture: is the photo still there, and does it look like the painting?

Two numbers at the picture's own size, and three at one at which a VGG-19 sees whole strokes. All
are relative, so that they compare across pictures, methods and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.images import LUMA, fit
from ..engine.device import evaluating
from ..errors import InputError
from ..models.vgg import Vgg19
from .losses import LAYERS, gram_distance, lattice, style_distance

JUDGED = 256
"""Long side in pixels at which VGG-19 judges."""

METRICS = ("ssim", "rel_content", "rel_style", "rel_gram", "lattice")

_WINDOW = 11

Features = Callable[[np.ndarray], Sequence[Tensor]]
"""(H, W, 3) uint8 sRGB → features (1, C, h, w) a layer: a judge of style."""


@dataclass(frozen=True)
class Scores:
    """What one stylized picture scored.

    Attributes:
        ssim: structural similarity to the content, on grey; 1 for the content itself.
        rel_content: ‖F(o)−F(c)‖² / ‖F(c)‖² at VGG-19's relu4_1; 0 for the content itself.
        rel_style: squared distance of the features' means and deviations from the style's, over
            the style's own, averaged over relu1_1…4_1; 0 for the style itself.
        rel_gram: the same for Gram matrices, by Frobenius norms (not squared).
        lattice: share of the fine detail that repeats every 4 pixels (see `losses.lattice`).
    """

    ssim: float
    rel_content: float
    rel_style: float
    rel_gram: float
    lattice: float


class Pair:
    """A photo and a painting as the judge sees them, once, for every method that joins them.

    Args:
        content: (H, W, 3) uint8 sRGB.
        style: (H', W', 3) uint8 sRGB.
        vgg: up to relu4_1 at least; its device and precision are used.
        others: further judges of the style, by the name of their score.

    Raises:
        InputError: a picture is too thin to be judged.
    """

    def __init__(
        self,
        content: np.ndarray,
        style: np.ndarray,
        vgg: Vgg19,
        others: Mapping[str, Features] | None = None,
    ) -> None:
        check_judgeable(content, style)
        self._content, self._vgg = content, vgg
        self._shown, self._wanted = (_features(vgg, _reduced(x)) for x in (content, style))
        self._others = {
            name: (judge, judge(_reduced(style))) for name, judge in (others or {}).items()
        }

    def score(self, output: np.ndarray) -> Scores:
        """Judge a picture that joins the two.

        Output, content and style are reduced to long side `JUDGED` by Lanczos's filter before VGG
        (smaller ones stay as they are). SSIM and the lattice are measured at the output's own size.

        Args:
            output: (H, W, 3) uint8 sRGB, of the content's size.

        Raises:
            InputError: sizes differ.
        """
        content = self._content
        if output.shape != content.shape:
            raise InputError(
                f"the output is {output.shape[1]}×{output.shape[0]}, its content "
                f"{content.shape[1]}×{content.shape[0]}; a picture is judged at its content's size"
            )
        got = _features(self._vgg, _reduced(output))
        return Scores(
            ssim=ssim(output, content),
            rel_content=float(relative_distance(got[-1], self._shown[-1])),
            rel_style=float(style_distance(got, self._wanted)),
            rel_gram=float(gram_distance(got, self._wanted)),
            lattice=float(lattice(_to_tensor(output))),
        )

    def other_scores(self, output: np.ndarray) -> dict[str, float]:
        """Return the relative style distance of (H, W, 3) uint8 in each further judge's features.

        Of features at long side `JUDGED`, as `rel_style` is.
        """
        small = _reduced(output)
        return {
            name: float(style_distance(judge(small), wanted))
            for name, (judge, wanted) in self._others.items()
        }


def score(output: np.ndarray, content: np.ndarray, style: np.ndarray, vgg: Vgg19) -> Scores:
    """Judge one stylized picture (see `Pair.score`).

    Args:
        output, content: (H, W, 3) uint8 sRGB, of one size.
        style: (H', W', 3) uint8 sRGB.
        vgg: up to relu4_1 at least; its device and precision are used.

    Raises:
        InputError: sizes differ, or a picture is too thin to be judged.
    """
    return Pair(content, style, vgg).score(output)


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean structural similarity of two pictures in grey.

    Wang et al. 2004: 11×11 Gaussian window of σ 1.5, K₁ .01, K₂ .03, over the pixels whose window
    lies inside the picture. In float64: float32 loses the variance of flat bright regions.

    Args:
        image, reference: (H, W, 3) uint8 of one size, at least 11 pixels a side.

    Raises:
        InputError: sizes differ or are too small.
    """
    from kornia.metrics import ssim as ssim_map

    if image.shape != reference.shape or min(image.shape[:2]) < _WINDOW:
        raise InputError(
            f"SSIM of {image.shape[:2]} and {reference.shape[:2]} pixels: needs one size of at "
            f"least {_WINDOW} a side"
        )
    one, two = (torch.from_numpy(x @ np.array(LUMA))[None, None] for x in (image, reference))
    return float(ssim_map(one, two, _WINDOW, max_val=255.0, eps=0.0, padding="valid").mean())


def relative_distance(output: Tensor, content: Tensor) -> Tensor:
    """Return ‖o−c‖² / ‖c‖² of features (N, C, H, W): (N,)."""
    difference = (output - content).flatten(1).square().sum(1)
    return difference / content.flatten(1).square().sum(1)


def check_judgeable(content: np.ndarray, style: np.ndarray) -> None:
    """Raise InputError where a picture, reduced to long side `JUDGED`, is too thin for a score.

    Args:
        content, style: (H, W, 3) uint8.
    """
    for name, pixels in (("content", content), ("style", style)):
        height, width = pixels.shape[:2]
        if min(height, width) * min(1.0, JUDGED / max(height, width)) < _WINDOW:
            raise InputError(
                f"a {name} of {width}×{height} is too thin: at long side {JUDGED} it must keep "
                f"{_WINDOW} pixels a side"
            )


def _reduced(pixels: np.ndarray) -> np.ndarray:
    return fit(pixels, min(JUDGED, max(pixels.shape[:2])))


def _features(vgg: Vgg19, pixels: np.ndarray) -> Sequence[Tensor]:
    weight = vgg.input.weight
    image = _to_tensor(pixels).to(weight.device, weight.dtype)
    with evaluating(vgg):
        return [x.float() for x in vgg(image, LAYERS)]


def _to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
