"""What measuring a population adds to a bare forward pass on the same tensors, in one run.

Beside our `measure` the plain ways to the same numbers, each a forward pass whose batch norms do
more than use their running statistics:

- `Moments.of`: a hook measures each input in separate passes, the layer normalizes with that;
- `kernel`: a hook calls the kernel with which torch trains a batch norm, whatever the format;
- `train mode`: the batch norms are in train mode, as most AdaBN code has it; the numbers are a
  moving average of batch variances.

The bare pass and the plain ways run on the tensors as they are given, with memory as the C
library hands it out. `measure` is given the same tensors. On a CPU it does two things of its own
in the time that is measured: contiguous batches of a model that convolves are made channels_last,
and memory that one batch frees is kept for the next until the end (`normapps.allocator`). So it
may take less than the bare pass. What reading the activations costs as such is what this prints
where the bare pass has its memory kept, too, as each command of `normapps` has:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000 python population.py --dry-run

Tried and dropped: in `fixed` mode, feeding a batch in pieces whose activations fit the cache. With
the pass that finds out whether pieces may be fed apart it was slower on resnet18 in both layouts
and no clear gain on mobilenetv2. So was a forward of the norm layers in blocks that fit the cache,
activation included (no gain).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

BAR = 0.10
"""How much longer than the bare pass a measurement may take."""

Case = Callable[[], object]


def main() -> None:
    options = _arguments()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.models:
            for layout in options.layouts:
                rows.append(_row(name, layout, threads, options))
                print(" | ".join(rows[-1]), flush=True)
    from results import conditions, table, write_section

    names = list(_cases(nn.Module(), []))[1:]
    title = (
        "## Measuring a population\n\n"
        f"Time over a bare forward pass (inference mode, no gradient) on the same {options.batches}"
        f" batches of {options.batch_size} x 3 x {options.size}², float32; median of"
        f" {options.repeats} rounds in which the ways take turns. The bar for `one-pass` and"
        f" `fixed` is {BAR:.0%}. All are given tensors of the named layout. Within its time"
        " `measure` makes contiguous ones channels_last itself, and keeps the memory that a batch"
        " frees for the next one, which is why it may take less than the bare pass."
    )
    header = ["model", "layout", "threads", "bare pass", *names]
    body = "\n\n".join([title, table(header, rows), conditions(("normapps", "torch", "timm"))])
    print(body)
    if not options.dry_run:
        write_section("population", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenetv2_100"])
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, default=8, help="forward passes a timing")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _row(name: str, layout: str, threads: int, options: argparse.Namespace) -> list[str]:
    from normapps.measure.timing import interleave
    from normapps.models.builders import timm_model
    from normapps.norm.population import apply_, measure

    memory: Any = {"memory_format": getattr(torch, f"{layout}_format", torch.channels_last)}
    model = timm_model(name).eval().to(**memory)
    shape = (options.batch_size, 3, options.size, options.size)
    inputs = [torch.randn(shape).to(**memory) for _ in range(options.batches)]
    # as in a trained network; with random weights alone activations fade to denormal numbers
    apply_(model, measure(model, inputs[:1]))
    found = interleave(_cases(model, inputs), repeats=options.repeats)
    bare = found.pop("bare").median
    over = [f"{timing.median / bare - 1:+.1%}" for timing in found.values()]
    return [name, layout, str(threads), f"{1e3 * bare / options.batches:.0f} ms", *over]


def _cases(model: nn.Module, inputs: list[Tensor]) -> dict[str, Case]:
    from normapps.norm.population.measuring import measure

    return {
        "bare": lambda: _run(model, inputs),
        "one-pass": lambda: measure(model, inputs, mode="one-pass"),
        "fixed": lambda: measure(model, inputs, mode="fixed"),
        "`Moments.of`": lambda: _hooked(model, inputs, _by_moments),
        "`kernel`": lambda: _hooked(model, inputs, _by_kernel),
        "train mode": lambda: _trained(model, inputs),
    }


@torch.no_grad()
def _run(model: nn.Module, inputs: list[Tensor]) -> None:
    for x in inputs:
        model(x)


def _hooked(model: nn.Module, inputs: list[Tensor], hook: Callable[..., None]) -> None:
    handles = [layer.register_forward_pre_hook(hook) for layer in _norms(model)]
    _run(model, inputs)
    for handle in handles:
        handle.remove()


def _by_moments(layer: Any, args: tuple[Tensor, ...]) -> None:
    from normapps.norm import BATCH, Moments

    moments = Moments.of(args[0], BATCH)
    layer.running_mean.copy_(moments.mean[0])
    layer.running_var.copy_(moments.var[0])


def _by_kernel(layer: Any, args: tuple[Tensor, ...]) -> None:
    mean, var = torch.batch_norm_update_stats(args[0], None, None, 0.0)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(var)


def _trained(model: nn.Module, inputs: list[Tensor]) -> None:
    for layer in _norms(model):
        layer.train()
    _run(model, inputs)
    model.eval()


def _norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


if __name__ == "__main__":
    main()
