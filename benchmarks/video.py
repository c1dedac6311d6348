"""Temporal error of stylized clips, frame by frame and with moving moments.

`python benchmarks/video.py` pans, zooms and stands still over real photographs, so that the motion
is known exactly, and stylizes the frames both ways. The temporal error is that of Lai et al. 2018
(Learning Blind Video Temporal Consistency): the root mean square difference between a frame and
the one before it, warped by the motion, over the pixels that both show; in 8-bit levels. The
photographs themselves, warped the same way, show what resampling alone costs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from normapps.style.moving import MovingMoments
from normapps.style.stylizer import Stylizer, resolve_style

WIDTH, HEIGHT, RATE = 320, 192, 25
_MARGIN = 16
"""Pixels at each side that are not judged: they lean on what the other frame does not show."""
_CAMERAS = ("pan", "zoom", "passer-by")
_HEADER = ("camera", "photographs", "frame by frame", "moving moments", "less by")

Box = tuple[float, float, float]
"""Left, top and width of what a frame shows, in pixels of the photograph."""


def main() -> None:
    options = _arguments()
    stylizer = Stylizer.load(options.model, device="cpu")
    style = resolve_style(stylizer, options.style)
    errors: dict[str, list[list[float]]] = {camera: [] for camera in _CAMERAS}
    rows: list[Tensor] = []
    for number, photo in enumerate(_photos()):
        for camera in _CAMERAS:
            frames, boxes, judged = _clip(photo, _photos()[number - 1], camera, options.frames)
            clips = [frames]
            for smooth in (0.0, options.smooth):
                clips.append(_paint(stylizer, style, frames, smooth, options.method))
            errors[camera].append([_temporal_error(clip, boxes, judged) for clip in clips])
            rows += [clip[:: max(1, options.frames // 8)] for clip in clips] * (number == 0)
            print(camera, number, *(f"{error:.2f}" for error in errors[camera][-1]), flush=True)
    if options.sheet:
        _save_sheet(rows, options.sheet)
    _publish(errors, options)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="adain-tiny")
    parser.add_argument("--method", default="adain")
    parser.add_argument("--style", default="preset:watercolor")
    parser.add_argument("--smooth", type=float, default=0.5, help="seconds")
    parser.add_argument("--frames", type=int, default=25, help="of each clip")
    parser.add_argument("--sheet", type=Path, help="PNG of frames to look at")
    parser.add_argument("--dry-run", action="store_true", help="print, leave RESULTS.md alone")
    return parser.parse_args()


def _photos() -> list[np.ndarray]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    return [load_sample_images().images[0], data.coffee(), data.astronaut(), data.chelsea()]


def _clip(
    photo: np.ndarray, other: np.ndarray, camera: str, frames: int
) -> tuple[Tensor, list[Box], Tensor]:
    """Frames (N, 3, H, W) in [0, 1], what each shows, and (N, 1, H, W) where that is known."""
    high, wide = photo.shape[:2]
    most = min(wide, high * WIDTH / HEIGHT)
    boxes = []
    for i in range(frames):
        along = i / max(1, frames - 1)
        width = most * {"pan": 0.6, "zoom": 0.95 - 0.35 * along}.get(camera, 0.9)
        height = width * HEIGHT / WIDTH
        left = (wide - width) * (along if camera == "pan" else 0.5)
        boxes.append((left, (high - height) / 2, width))
    seen = torch.stack([_view(photo, box) for box in boxes])
    judged = torch.ones(frames, 1, HEIGHT, WIDTH)
    if camera == "passer-by":
        patch = _view(other, (0, 0, min(other.shape[1], other.shape[0] * WIDTH / HEIGHT)))
        for i in range(frames):
            left = round((WIDTH + WIDTH // 3) * i / max(1, frames - 1)) - WIDTH // 3
            start, stop = max(0, left), min(WIDTH, left + WIDTH // 3)
            seen[i, :, HEIGHT // 4 :, start:stop] = patch[
                :, HEIGHT // 4 :, start - left : stop - left
            ]
            judged[
                i, :, HEIGHT // 4 - _MARGIN :, max(0, start - 2 * _MARGIN) : stop + 2 * _MARGIN
            ] = 0
    return seen, boxes, judged


def _view(photo: np.ndarray, box: Box) -> Tensor:
    left, top, width = box
    place = (left, top, left + width, top + width * HEIGHT / WIDTH)
    size, bicubic = (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    image = Image.fromarray(photo).resize(size, bicubic, box=place)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def _paint(stylizer: Stylizer, style: object, frames: Tensor, smooth: float, method: str) -> Tensor:
    moving = MovingMoments(smooth) if smooth else None
    painted = []
    for number, frame in enumerate(frames):
        if moving:
            moving.begin(number / RATE)
        painted.append(stylizer(frame, style, method=method, steady=moving))
    return torch.stack(painted)


def _temporal_error(frames: Tensor, boxes: list[Box], judged: Tensor) -> float:
    squares, pixels = 0.0, 0.0
    for i in range(1, len(frames)):
        warped, inside = _warp(frames[i - 1], boxes[i - 1], boxes[i])
        shown, _ = _warp(judged[i - 1], boxes[i - 1], boxes[i])
        counts = inside * (shown > 0.99) * judged[i]
        squares += float(((frames[i] - warped).square().mean(0, keepdim=True) * counts).sum())
        pixels += float(counts.sum())
    return 255 * (squares / pixels) ** 0.5


def _warp(frame: Tensor, box: Box, onto: Box) -> tuple[Tensor, Tensor]:
    """What a frame that shows `box` says of `onto`, and (1, H, W) where it says anything."""
    scale = onto[2] / box[2]
    ys, xs = (torch.arange(size) + 0.5 for size in (HEIGHT, WIDTH))
    pixel = box[2] / WIDTH
    xs = xs * scale + (onto[0] - box[0]) / pixel
    ys = ys * scale + (onto[1] - box[1]) / pixel
    grid = torch.stack(torch.meshgrid(xs / WIDTH * 2 - 1, ys / HEIGHT * 2 - 1, indexing="xy"), -1)
    warped = F.grid_sample(frame[None], grid[None], "bicubic", "border", align_corners=False)[0]
    inner = (xs > _MARGIN) & (xs < WIDTH - _MARGIN)
    inner = inner & ((ys > _MARGIN) & (ys < HEIGHT - _MARGIN))[:, None]
    return warped, inner[None].float()


def _save_sheet(rows: list[Tensor], path: Path) -> None:
    least = min(len(row) for row in rows)
    lines = [torch.cat(list(row[:least]), 2) for row in rows]
    pixels = (torch.cat(lines, 1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2)).save(path)


def _publish(errors: dict[str, list[list[float]]], options: argparse.Namespace) -> None:
    from results import conditions, table, write_section

    rows = []
    for camera, of_photos in errors.items():
        plain, single, moving = np.array(of_photos).mean(0)
        less = 1 - np.array(of_photos)[:, 2] / np.array(of_photos)[:, 1]
        rows.append(
            [camera, f"{plain:.2f}", f"{single:.2f}", f"{moving:.2f}", f"{100 * less.mean():.0f} %"]
        )
    body = f"""## Clips: temporal error

`python benchmarks/video.py`: {len(_photos())} photographs, {options.frames} frames each of
{WIDTH}×{HEIGHT} at {RATE} a second, {options.style}, `--method {options.method}`,
`--smooth {options.smooth}`. A camera pans or zooms over the photograph, or stands still while part
of another photograph passes through the picture. The error is the root mean square difference, in
8-bit levels, between a frame and the one before it warped by the motion, where both show the same;
"photographs" is that of the frames before they are stylized, which resampling alone costs. "Less
by": the mean over the photographs.

{table(_HEADER, rows)}

{conditions(("torch",))}"""
    print(body)
    if not options.dry_run:
        write_section("video", body)


if __name__ == "__main__":
    main()
