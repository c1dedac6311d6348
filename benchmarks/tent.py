"""What TENT of ours adds to the plain formula on ready tensors, in one run.

The plain formula, as its published code has it: batch norms in train mode without running
statistics, entropy of the softmax, a step of the same optimizer; no state to go back to, no
export, no check of a batch.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

BAR = 0.05
"""How much longer than the plain formula ours may take."""

Step = Callable[[Tensor], Tensor]


def main() -> None:
    options = _arguments()
    if options.alone:
        _run_alone(options)
        return
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.models:
            rows.append(_row(name, threads, options))
            print(" | ".join(rows[-1]), flush=True)
    from results import conditions, table, write_section

    time_of = "CPU time" if options.clock == "cpu" else "Time"
    title = (
        "## TENT\n\n"
        f"{time_of} of ours over the plain formula on the same {options.batches} batches of"
        f" {options.batch_size} x 3 x {options.size}², float32, SGD; median of {options.repeats}"
        f" rounds in which both take turns. The bar is {BAR:.0%}. Memory: the most that a process"
        " held that did this alone, after 2 batches."
    )
    header = ["model", "threads", "plain", "ours", "memory, plain", "memory, ours"]
    body = "\n\n".join([title, table(header, rows), conditions(("normapps", "torch", "timm"))])
    print(body)
    if not options.dry_run:
        write_section("tent", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenetv2_100"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, default=2, help="steps a timing")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: busy machine"
    )
    parser.add_argument("--alone", choices=("plain", "ours"), help="run one of them, print nothing")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _row(name: str, threads: int, options: argparse.Namespace) -> list[str]:
    from normapps.measure.timing import interleave

    model, inputs = _model(name), _inputs(options)
    steps = {"plain": _plain(model), "ours": _ours(model)}
    cases = {key: (lambda step=step: [step(x) for x in inputs]) for key, step in steps.items()}
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    found = interleave(cases, repeats=options.repeats, clock=clock)
    plain, ours = found["plain"].median, found["ours"].median
    peaks = [_peak_of(kind, name, threads, options) for kind in steps]
    each = f"{1e3 * plain / options.batches:.0f} ms"
    return [name, str(threads), each, f"{ours / plain - 1:+.1%}", *peaks]


def _model(name: str) -> nn.Module:
    from normapps.models.builders import timm_model

    torch.manual_seed(0)
    return timm_model(name).eval()


def _inputs(options: argparse.Namespace) -> list[Tensor]:
    shape = (options.batch_size, 3, options.size, options.size)
    return [torch.randn(shape) for _ in range(options.batches)]


def _plain(model: nn.Module) -> Step:
    model = copy.deepcopy(model).requires_grad_(False)
    parameters = []
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train().requires_grad_(True)
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
            parameters += list(layer.parameters(recurse=False))
    optimizer = torch.optim.SGD(parameters, lr=2.5e-4, momentum=0.9)

    def step(x: Tensor) -> Tensor:
        logits: Tensor = model(x)
        loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return logits

    return step


def _ours(model: nn.Module) -> Step:
    from normapps.adapt.online.tent import tent

    return tent(model)


def _run_alone(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads[0])
    model = _model(options.models[0])
    step = _plain(model) if options.alone == "plain" else _ours(model)
    del model
    for x in _inputs(options):
        step(x)


def _peak_of(kind: str, name: str, threads: int, options: argparse.Namespace) -> str:
    from normapps.measure.process import measure_command

    words = [sys.executable, __file__, "--alone", kind, "--models", name, "--threads", str(threads)]
    words += ["--size", str(options.size), "--batch-size", str(options.batch_size)]
    return f"{measure_command(words).peak_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
