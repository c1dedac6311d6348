"""Judging one of our networks: `style evaluate`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..data.images import Picture
from ..data.sources import PictureSource
from ..engine.device import resolve_device
from ..files import check_writable, write_text
from ..models.vgg import load_vgg19
from .evaluation import Report, Row, Stylize, evaluate
from .losses import LAYERS
from .options import AUTO, EvaluateOptions
from .stylizer import Stylizer


def judge(options: EvaluateOptions, progress: Callable[[int, Row], None] | None = None) -> Report:
    """Judge a network on the pictures that its training left out; write the report if asked to.

    Args:
        options: network, pictures, judge.
        progress: called after each pair (see `evaluation.evaluate`).

    Raises:
        InputError: a network, picture source or weight file that cannot be used.
    """
    if options.out:
        check_writable(options.out, options.overwrite)
    stylizer = Stylizer.load(options.model, device=options.device)
    vgg = load_vgg19(options.vgg, LAYERS[-1]).to(resolve_device(options.device))
    contents, styles = (
        PictureSource(places, options.hold_out, held=options.hold_out > 0)
        for places in (options.contents, options.styles)
    )
    report = evaluate(
        method(stylizer, options.size, options.alpha, options.method),
        contents,
        styles,
        pairs=options.pairs,
        vgg=vgg,
        size=options.size,
        seed=options.seed,
        progress=progress,
    )
    if options.out:
        write_text(options.out, report.to_json(), overwrite=options.overwrite)
    return report


def method(
    stylizer: Stylizer, style_size: int = 512, alpha: float = 1.0, method: str = AUTO
) -> Stylize:
    """Make a stylizer the function of two arrays that `evaluate` judges.

    Args:
        stylizer: any network's.
        style_size: long side at which it looks at paintings.
        alpha: strength.
        method: how features are moved; `auto` as the network has it.
    """

    def stylize(content: np.ndarray, painting: np.ndarray) -> np.ndarray:
        style = stylizer.style(Picture(painting), size=style_size)
        return stylizer(Picture(content), style, alpha=alpha, method=method).pixels

    return stylize
