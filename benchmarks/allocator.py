"""What keeping freed memory saves on the CPU: the same batches in two processes that take turns.

`keep_freed_memory` is called by every command of `normapps` before its work; a library call never
does. Printed beside the time: the most memory that the process held.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from results import conditions, table, write_section

_WORK = """
import resource, sys, time
from normapps.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import torch
import normapps.models  # its guard goes before timm
import timm
name, training, size, threads = sys.argv[2], sys.argv[3] == "training", int(sys.argv[4]), 1
torch.set_num_threads(threads)
model = timm.create_model(name).to(memory_format=torch.channels_last).train(training)
batch = torch.rand(size, 3, 224, 224).to(memory_format=torch.channels_last)
def step():
    with torch.set_grad_enabled(training):
        out = model(batch)
        if training:
            out.sum().backward()
step()
seconds = []
for _ in range(3):
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
print(min(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    options = _arguments()
    rows = []
    for name in options.models:
        for mode in ("inference", "training"):
            rows.append(_row(name, mode, options.batch_size, options.repeats))
            print(" | ".join(rows[-1]), flush=True)
    body = "\n\n".join(
        [
            "## Freed memory that is kept",
            f"Milliseconds a picture of {options.batch_size} x 3 x 224², float32, channels_last,"
            " one thread; the fastest of 3 batches, median of"
            f" {options.repeats} processes each, which take turns.",
            table(["model", "work", "usual", "kept", "saved", "memory", "memory, kept"], rows),
            conditions(("normapps", "torch", "timm")),
        ]
    )
    print(body)
    if not options.dry_run:
        write_section("allocator", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenetv2_100"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="leave RESULTS.md as it is")
    return parser.parse_args()


def _row(name: str, mode: str, size: int, repeats: int) -> list[str]:
    seconds: dict[str, list[float]] = {"usual": [], "kept": []}
    memory = {"usual": 0.0, "kept": 0.0}
    for _ in range(repeats):
        for word, found in seconds.items():
            took, peak = _run(word, name, mode, size)
            found.append(took)
            memory[word] = max(memory[word], peak)
    usual, kept = (statistics.median(each) * 1000 / size for each in seconds.values())
    words = [f"{usual:.1f}", f"{kept:.1f}", f"{1 - kept / usual:.0%}"]
    return [name, mode, *words, *(f"{each:.0f} MiB" for each in memory.values())]


def _run(word: str, name: str, mode: str, size: int) -> tuple[float, float]:
    command = [sys.executable, "-c", _WORK, word, name, mode, str(size)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(said[-2]), float(said[-1])


if __name__ == "__main__":
    main()
