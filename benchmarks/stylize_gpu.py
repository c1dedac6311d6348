"""How fast a GPU stylizes: our network as we run it, the same run plainly, and MicroAST.

Batches of 8-bit pictures in the device's memory become 8-bit pictures there, in a style encoded
before; the host waits for the device once a round, not once a picture. What is measured goes into
the state file at once: a call that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from results import conditions, table, write_section
from torch import Tensor

from normapps.engine.capture import Captured, CudaRecorder, capture_
from normapps.engine.device import place
from normapps.files import write_text
from normapps.models.adain_tiny import REPLAYED, AdainTiny, moments
from normapps.models.folder import load_model
from normapps.models.shipped import resolve_model

Paint = Callable[[Tensor], Tensor]
"""(N, 3, H, W) uint8 → the same, in a style; on one device."""

PACKAGES = ("normapps", "torch", "triton")
STYLE_SIDE = 512
ROUND_SECONDS = 0.2


def main() -> None:
    options = _arguments()
    state = json.loads(options.state.read_text()) if options.state.exists() else {}
    for variant in options.variants:
        for size in options.sizes:
            for batch in options.batches:
                case = f"{variant}, {size}, {batch}"
                if case not in state:
                    state[case] = _measure(variant, size, batch, options)
                    print(case, state[case], file=sys.stderr, flush=True)
                    write_text(options.state, json.dumps(state, indent=1) + "\n", overwrite=True)
    if options.profile:
        print(_profile(options), file=sys.stderr)
    body = section(state, options)
    print(body)
    if not options.dry_run:
        write_section("stylize-gpu", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["512x512", "4096x2160"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
    parser.add_argument("--model", default="adain-tiny", help="which of our networks")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--state", type=Path, default=Path(".gpu/stylize.json"))
    parser.add_argument("--profile", action="store_true", help="print where the time goes, 512²")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _plain(model: str, device: torch.device) -> Paint:
    return _paint(_network(model).to(device), device)


def _half(model: str, device: torch.device) -> Paint:
    return _paint(place(_network(model), device, torch.bfloat16), device)


def _replayed(model: str, device: torch.device) -> Paint:
    return _captured(model, device)


def _compiled(model: str, device: torch.device) -> Paint:
    return _captured(model, device, compile=True)


def _captured(model: str, device: torch.device, **how: bool) -> Paint:
    network = place(_network(model), device, torch.bfloat16)
    capture_(network, REPLAYED, device, **how)
    return _paint(network, device)


def _one_graph(model: str, device: torch.device) -> Paint:
    """Everything, the moments too, in one graph: what the parts' graphs leave to be had."""
    paint = _half(model, device)
    return paint if device.type != "cuda" else Captured(paint, CudaRecorder(device), at_once=True)


def _microast(model: str, device: torch.device) -> Paint:
    return _microast_as(device, torch.float32)


def _microast_half(model: str, device: torch.device) -> Paint:
    return _microast_as(device, torch.float16)


def _microast_as(device: torch.device, dtype: torch.dtype) -> Paint:
    from microast import MicroAST

    network = place(MicroAST(None), device, dtype)
    signals = network.signals(_style_picture(device).to(dtype) / 255)
    return lambda images: _pixels(network(images.to(dtype) / 255, signals))


VARIANTS: dict[str, Callable[[str, torch.device], Paint]] = {
    "normapps, plain float32": _plain,
    "normapps, bfloat16": _half,
    "normapps": _replayed,
    "normapps --compile": _compiled,
    "normapps, one graph": _one_graph,
    "MicroAST": _microast,
    "MicroAST, float16": _microast_half,
}
"""What is timed. `normapps` is what the stylizer does: bfloat16, channels_last, CUDA graphs."""

OURS, PEERS = "normapps", ("normapps, plain float32", "MicroAST")


def _network(model: str) -> AdainTiny:
    network = load_model(resolve_model(model))
    if not isinstance(network, AdainTiny):
        raise SystemExit(f"{model}: is no adain-tiny")
    return network.eval().requires_grad_(False)


def _paint(network: AdainTiny, device: torch.device) -> Paint:
    style = moments(network.encode(_style_picture(device)))

    def paint(images: Tensor) -> Tensor:
        features = network.encode(images)
        return _pixels(network.decode(features, style, moments(features)))

    return paint


def _pixels(image: Tensor) -> Tensor:
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def _style_picture(device: torch.device) -> Tensor:
    return _noise((1, 3, STYLE_SIDE, STYLE_SIDE), device)


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def _measure(variant: str, size: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a batch, and the most memory that tensors took; or why there are none.

    Of several rounds, each of as many batches as a fifth of a second holds, the median.
    """
    device = torch.device(options.device)
    width, height = (int(side) for side in size.split("x"))
    images = _noise((batch, 3, height, width), device)
    try:
        with torch.inference_mode(), _own_memory(device) as peak:
            paint = VARIANTS[variant](options.model, device)
            for _ in range(3):
                paint(images)
            one = _seconds(paint, images, 1)
            times = max(1, min(200, round(ROUND_SECONDS / max(one, 1e-6))))
            rounds = [_seconds(paint, images, times) / times for _ in range(options.repeats)]
            return {"seconds": median(rounds), "bytes": peak(), "megapixels": images.numel() / 3e6}
    except torch.OutOfMemoryError:
        return {"reason": "out of memory"}


def _seconds(paint: Paint, images: Tensor, times: int) -> float:
    _wait(images.device)
    start = time.perf_counter()
    for _ in range(times):
        paint(images)
    _wait(images.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _own_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Begin with a device's memory free; yields what tells the peak."""
    if device.type != "cuda":
        yield lambda: 0
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device)
    torch.compiler.reset()


def _profile(options: argparse.Namespace) -> str:
    from torch.profiler import ProfilerActivity, profile

    device = torch.device(options.device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    images = _noise((1, 3, 512, 512), device)
    with torch.inference_mode():
        paint = _half(options.model, device)
        paint(images)
        with profile(activities=activities) as found:
            _seconds(paint, images, 10)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return str(found.key_averages().table(sort_by=key, row_limit=20))


def section(state: dict[str, Any], options: argparse.Namespace) -> str:
    """Format the table of what was measured, and how many times as fast ours is."""
    rows, ratios = [], []
    for size in options.sizes:
        for batch in options.batches:
            found = {name: state.get(f"{name}, {size}, {batch}") for name in options.variants}
            rows += [_row(size, batch, name, got) for name, got in found.items() if got]
            ratios += [_ratio(size, batch, peer, found) for peer in PEERS if peer in found]
    return "\n\n".join(
        [
            "## Stylizing on a GPU",
            "8-bit pictures in the device's memory to 8-bit pictures there, `adain`, the style "
            "encoded before (random pixels, which cost what photographs cost); the host waits once "
            f"in about {ROUND_SECONDS:g} s of work; median of {options.repeats} such rounds. "
            f"`{OURS}` is what the stylizer does: bfloat16, channels_last, CUDA graphs for inputs "
            "up to 64 MiB; plain is the same network in float32 as torch runs it, MicroAST its "
            "published shape (its weights do not matter to the time).",
            table(["pictures", "batch", "method", "ms a batch", "MP/s", "memory"], rows),
            "\n".join(line for line in ratios if line),
            conditions(PACKAGES, options.device),
        ]
    )


def _row(size: str, batch: int, name: str, got: dict[str, Any]) -> list[str]:
    case = [size.replace("x", "×"), str(batch), name]
    if "seconds" not in got:
        return [*case, got["reason"], "", ""]
    speed = got["megapixels"] / got["seconds"]
    return [*case, f"{got['seconds'] * 1e3:.2f}", f"{speed:.0f}", f"{got['bytes'] / 1e6:.0f} MB"]


def _ratio(size: str, batch: int, peer: str, found: dict[str, Any]) -> str:
    ours, theirs = found.get(OURS) or {}, found[peer] or {}
    if "seconds" not in ours or "seconds" not in theirs:
        return ""
    ratio = theirs["seconds"] / ours["seconds"]
    return f"- {size.replace('x', '×')}, batch {batch}: {ratio:.2f} × as fast as {peer}"


if __name__ == "__main__":
    main()
