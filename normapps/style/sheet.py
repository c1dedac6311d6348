"""Contact sheets: photos in many styles on one labelled page, to choose from."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.images import Picture, fit, read_image, writable_format, write_image
from ..data.inputs import find_inputs
from ..errors import InputError
from ..files import check_writable
from .options import AUTO, PRESET, SheetOptions
from .styles import Style, list_presets
from .stylizer import Stylizer, resolve_style

_GAP, _LABEL = 8, 20


def contact_sheet(
    stylizer: Stylizer,
    contents: Sequence[Picture],
    styles: Sequence[Style],
    *,
    tile: int = 256,
    columns: int = 0,
    alpha: float = 1.0,
    method: str = AUTO,
) -> Picture:
    """Draw every content, and every content in every style, each under its name.

    Args:
        stylizer: draws them, at twice the size they have on the sheet, so that strokes look as
            they do on a picture of that size.
        contents, styles: at least one of each.
        tile: long side of a picture in pixels.
        columns: pictures a row; 0 gives each content a row of its own, or, for a single content,
            about a square.
        alpha: strength of the styles.
        method: how features get the styles' moments; `auto` as the network has it.

    Raises:
        InputError: nothing to draw.
    """
    if not contents or not styles:
        raise InputError("a sheet needs at least one photo and one style")
    cells: list[tuple[str, np.ndarray]] = []
    for content in contents:
        drawn = dataclasses.replace(content, pixels=fit(content.pixels, 2 * tile), alpha=None)
        cells.append(("original", fit(drawn.pixels, tile)))
        for style in styles:
            painted = stylizer(drawn, style, alpha=alpha, method=method)
            cells.append((style.name, fit(painted.pixels, tile)))
    return Picture(_page(cells, columns or _columns(len(contents), len(styles) + 1)))


def sheet_of_files(contents: Sequence[str], out: str, options: SheetOptions) -> list[str]:
    """Draw the sheet of photo files and write it.

    Args:
        contents: files, globs or folders.
        out: the picture to write; its suffix says the format.
        options: styles and layout.

    Returns:
        One line for each photo that cannot be read; the sheet is drawn without them.

    Raises:
        InputError: the output cannot be written, a style cannot be read, or no photo can.
    """
    writable_format(out)
    check_writable(out, options.overwrite)
    stylizer = Stylizer.load(options.model, device=options.device)
    specs = options.style or tuple(PRESET + name for name in list_presets(options.model))
    if not specs:
        raise InputError(f"{options.model}: has no presets; give --style a painting")
    styles = [resolve_style(stylizer, spec, options.style_size) for spec in specs]
    photos, failed = [], []
    for item in find_inputs(contents):
        try:
            photo = read_image(item.path or sys.stdin.buffer, max_pixels=options.max_pixels)
            small = fit(photo.pixels, 2 * options.tile)
            photos.append(dataclasses.replace(photo, pixels=small, alpha=None))
        except InputError as error:
            failed.append(str(error))
    if not photos:
        raise InputError("; ".join(failed))
    chosen = {name: getattr(options, name) for name in ("tile", "columns", "alpha", "method")}
    page = contact_sheet(stylizer, photos, styles, **chosen)
    write_image(page, out, overwrite=options.overwrite)
    return failed


def _columns(contents: int, a_row: int) -> int:
    return a_row if contents > 1 else max(2, round(math.sqrt(a_row * 1.2)))


def _page(cells: Sequence[tuple[str, np.ndarray]], columns: int) -> np.ndarray:
    height = max(pixels.shape[0] for _, pixels in cells) + _LABEL + _GAP
    width = max(pixels.shape[1] for _, pixels in cells) + _GAP
    rows = math.ceil(len(cells) / columns)
    page = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for i, (label, pixels) in enumerate(cells):
        left, top = _GAP + i % columns * width, _GAP + i // columns * height
        draw.text((left + 2, top), label, fill="black", font=font)
        page.paste(Image.fromarray(pixels), (left, top + _LABEL))
    return np.array(page)
