"""How long each layer takes beside torch's batch norm, in one run: `make bench-norm`.

Every layer of the registry, as it is made by default, forward and forward + backward in training
mode and forward at inference. A layer takes turns with `nn.BatchNorm2d` on the same tensors, so
that a machine that slows down slows both. Gradients are taken of x, of all parameters and of what
the condition is made of (a style's moments). Freed memory is kept (`normapps.allocator`), for all,
as in each command that trains: without, new pages are much of what the larger tensors cost. Beside
it

- `adaptive` is measured against `nn.InstanceNorm2d(affine=True)`, which does the same less the
  style;
- whitening against the public IterNorm's formula written plainly (`PlainIterNorm`).

What was tried, as process time on one busy core (torch 2.13):

- AdaIN at 32 × 64 × 56 × 56, over instance norm, forward / forward + backward. Moments, then a
  multiply-add: 0.9 / 2.8; the multiply-add's gradient by the batch norm kernel (what the layers of
  many moments do now): 1.0 / 1.1 to 2.8, as every new tensor of 25 MB may cost as much as reading
  it; the kernel for all of it (what AdaIN does now): 1.0 / 1.0. A gradient of our own about our
  two-pass moments: 0.7 / 0.7 on the small shapes and 0.4 / 1.4 on the large one, dropped.
- A scale and shift a sample and channel, forward + backward: multiply-add 41 ms, kernel 12 ms; for
  channels_last 20 ms and, with the copies it needs, 52 ms: there it stays a multiply-add.
- The kernel that measures, `batch_norm_update_stats`: contiguous 11 ms where two passes take 5 to
  6, dropped; channels_last 2 ms where they take 11, but it adds rows in float32: dropped, too.
- frn at 32 × 256 × 14 × 14, over batch norm: `maximum` and `square().mean()` 0.9 / 5.8, a rectifier
  and a norm 0.8 / 2.3.
- Whitening: products without a shift no longer add zeros, one pass of eight. What is left are four
  products, and at 14 × 14 a tenth for Newton's 45 small ones in float64.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normapps.allocator import keep_freed_memory

SHAPES = ((32, 64, 56, 56), (32, 256, 14, 14), (8, 512, 28, 28))
PASSES = ("forward", "forward + backward", "inference")
BATCH, INSTANCE, PLAIN = "torch's batch norm", "torch's instance norm", "plain IterNorm"
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
FEATURES, CLASSES = 64, 10

BANKS = ("domain", "autodial", "transnorm", "domain_whitening")

OPTIONS: dict[str, dict[str, Any]] = {
    "conditional": {"num_classes": CLASSES},
    "conditional_coloring": {"num_classes": CLASSES},
    "self_modulated": {"latent_features": FEATURES},
    "adalin": {"latent_features": FEATURES},
    "spatial": {"condition_channels": 8, "hidden_channels": 16},
    **{name: {"num_domains": 2} for name in BANKS},
}
"""What a layer needs to be made."""

WIDE = ("zca", "cholesky", "pca")
"""Whitened in groups of 64 too, the default of `iternorm`: so the factorizations compare."""


@dataclass(frozen=True)
class Bar:
    """A limit on the time of one row over that of a layer of torch's."""

    row: str
    peer: str
    limit: float


BARS = (
    Bar("adaptive", INSTANCE, 1.5),
    Bar("iternorm", BATCH, 6),
    Bar("zca, groups of 64", BATCH, 6),
)

Ratios = dict[tuple[str, str, tuple[int, ...], str], float]
"""Row, peer, shape, pass → time over the peer's."""


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    row: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def peers(self) -> dict[str, Callable[[int], nn.Module]]:
        """What it is measured against."""
        found: dict[str, Callable[[int], nn.Module]] = {BATCH: nn.BatchNorm2d}
        if self.name == "adaptive":
            found[INSTANCE] = functools.partial(nn.InstanceNorm2d, affine=True)
        if self.name == "iternorm" or "group_size" in self.options:
            found[PLAIN] = PlainIterNorm
        return found


class PlainIterNorm(nn.Module):
    """IterNorm (Huang et al. 2019) as its formula reads, in groups of 64 channels.

    x is copied so that a channel's samples are neighbours, P ← ½(3P − P³Σ/trΣ) is iterated five
    times from I by autograd's own gradient, W = P/√trΣ, and the result is copied back. A running
    average of W serves inference, as in the public code.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, num_features: int, group_size: int = 64, iterations: int = 5) -> None:
        super().__init__()
        groups = num_features // group_size
        self.group_size, self.iterations = group_size, iterations
        self.weight = nn.Parameter(torch.ones(num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_features, 1, 1))
        self.register_buffer("mean", torch.zeros(groups, group_size, 1))
        self.register_buffer("matrix", torch.eye(group_size).repeat(groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Whiten (N, C, H, W), then scale and shift it."""
        n, c, h, w = x.shape
        values = x.transpose(0, 1).contiguous().view(-1, self.group_size, n * h * w)
        if self.training:
            mean, matrix = self._measured(values)
        else:
            mean, matrix = self.mean, self.matrix
        y = (matrix @ (values - mean)).view(c, n, h, w).transpose(0, 1)
        return y * self.weight + self.bias

    def _measured(self, values: Tensor) -> tuple[Tensor, Tensor]:
        mean = values.mean(2, keepdim=True)
        centred = values - mean
        eye = torch.eye(self.group_size, device=values.device)
        cov = 1e-5 * eye + centred @ centred.transpose(1, 2) / values.shape[2]
        trace = cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        found = eye.expand_as(cov)
        for _ in range(self.iterations):
            found = 0.5 * (3 * found - found @ found @ found @ (cov / trace))
        matrix = found / trace.sqrt()
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
            self.matrix.lerp_(matrix, 0.1)
        return mean, matrix


def main() -> None:
    options = _arguments()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    ratios: Ratios = {}
    rows = list(cases(options.layers))
    for case in rows:
        for shape in options.shapes:
            ratios |= measure(case, shape, options)
        print(" | ".join(_row(case.row, BATCH, ratios, options.shapes)), flush=True)
    body = section([case.row for case in rows], ratios, options)
    print(body)
    if not options.dry_run:
        from results import write_section

        write_section(f"norms-{options.device}-{options.memory_format}", body)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", default="*", help="shell pattern of names, like '*norm'")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds a layer")
    parser.add_argument("--memory-format", default="contiguous", choices=list(_FORMATS))
    parser.add_argument(
        "--clock", default="wall", choices=list(CLOCKS), help="process: on a machine that is busy"
    )
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, default=list(SHAPES), help="like 8x512x28x28"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    return parser.parse_args()


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split("x"))


def cases(pattern: str) -> list[Case]:
    """Return the rows of the layers whose names match, sorted, wide groups after narrow ones."""
    from normapps.norm.registry import list_norms

    found = []
    for name in list_norms(pattern):
        found.append(Case(name, name, OPTIONS.get(name, {})))
        if name in WIDE:
            found.append(Case(f"{name}, groups of 64", name, {"group_size": 64}))
    return found


def measure(case: Case, shape: tuple[int, ...], options: argparse.Namespace) -> Ratios:
    """Return the time of one layer over that of each of its peers, pass by pass."""
    from normapps.measure.timing import interleave
    from normapps.norm.registry import create_norm

    layer = create_norm(case.name, shape[1], layout="2d", **case.options)
    layers = {case.row: layer, **{peer: make(shape[1]) for peer, make in case.peers.items()}}
    x = torch.randn(shape, device=options.device).to(memory_format=_FORMATS[options.memory_format])
    given: dict[str, Any] = {case.row: condition(case.name, x)}
    ratios: Ratios = {}
    for kind in PASSES:
        runs = {
            name: _run(each.to(options.device), x, given.get(name), kind)
            for name, each in layers.items()
        }
        wait = torch.cuda.synchronize if x.is_cuda else None
        clock = CLOCKS[options.clock]
        found = interleave(runs, repeats=options.rounds, warmup=2, synchronize=wait, clock=clock)
        for peer in case.peers:
            ratios[case.row, peer, shape, kind] = found[case.row].median / found[peer].median
    return ratios


def condition(name: str, x: Tensor) -> Any:
    """Return a condition for x of (N, C, H, W), or None for a layer that needs none."""
    from normapps.norm import Moments

    n, c, *space = x.shape
    like: dict[str, Any] = {"device": x.device}
    if name == "adaptive":
        mean, var = torch.randn(n, c, **like), torch.rand(n, c, **like) + 0.5
        return Moments(torch.ones(n, **like), mean.requires_grad_(), var.requires_grad_())
    if name in ("conditional", "conditional_coloring"):
        return torch.arange(n, **like) % CLASSES
    if name in BANKS:
        return torch.arange(n, **like) % 2
    if name in ("self_modulated", "adalin"):
        return torch.randn(n, FEATURES, **like)
    if name == "spatial":
        return torch.randn(n, 8, *space, **like)
    return torch.rand(n, 1, *space, **like).gt(0.4) if name == "region" else None


def _run(layer: nn.Module, x: Tensor, given: Any, kind: str) -> Callable[[], object]:
    """One pass as a function of nothing."""
    arguments = (x.detach().requires_grad_(kind != "inference"),)
    arguments += () if given is None else (given,)
    if kind == "inference":
        return lambda: _infer(layer, arguments)
    if kind == "forward":
        return lambda: layer.train()(*arguments)
    learnt = [arguments[0], *layer.parameters(), *_learnt_of(given)]
    grad = torch.randn_like(x)
    return lambda: torch.autograd.grad(layer.train()(*arguments), learnt, grad, allow_unused=True)


@torch.inference_mode()
def _infer(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
    layer.eval()(*arguments)


def _learnt_of(given: Any) -> list[Tensor]:
    from normapps.norm import Moments

    return [given.mean, given.var] if isinstance(given, Moments) else []


def section(rows: Sequence[str], ratios: Ratios, options: argparse.Namespace) -> str:
    """Return the section of RESULTS.md."""
    from results import conditions, table

    shapes = options.shapes
    title = (
        f"## Layers beside torch's batch norm: {options.device}, {options.memory_format}\n\n"
        "Time over `nn.BatchNorm2d`'s on the same tensors, float32: forward / forward + backward,"
        f" both in training mode / inference. Medians of {options.rounds} rounds in which the two"
        f" take turns, {options.clock} clock, {options.threads} threads. Freed memory is kept"
        " (`normapps.allocator`), as by each command; without, new pages cost a layer of many"
        " products more than batch norm."
    )
    header = ["layer", *[" × ".join(map(str, shape)) for shape in shapes]]
    whole = table(header, [_row(row, BATCH, ratios, shapes) for row in rows])
    others = [
        [f"{row}, over {peer}", *_row(row, peer, ratios, shapes)[1:]]
        for row, peer in dict.fromkeys(key[:2] for key in ratios)
        if peer != BATCH
    ]
    parts = [title, whole, *([table(header, others)] if others else [])]
    if met := verdicts(ratios, shapes):
        parts.append(table(["bar, forward and forward + backward", "slowest", "met"], met))
    return "\n\n".join([*parts, conditions(("normapps", "torch"), options.device)])


def verdicts(ratios: Ratios, shapes: Sequence[tuple[int, ...]]) -> list[list[str]]:
    """Return the bars that were measured, the slowest training pass and whether it is within."""
    rows = []
    for bar in BARS:
        keys = [(bar.row, bar.peer, shape, kind) for shape in shapes for kind in PASSES[:2]]
        if keys[0] in ratios:
            slowest = max(ratios[key] for key in keys)
            met = "yes" if slowest <= bar.limit else "no"
            rows.append([f"{bar.row} ≤ {bar.limit}× {bar.peer}", f"{slowest:.2f}", met])
    return rows


def _row(row: str, peer: str, ratios: Ratios, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    cells = (
        " / ".join(f"{ratios[row, peer, shape, kind]:.2f}" for kind in PASSES) for shape in shapes
    )
    return [row, *cells]


_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


if __name__ == "__main__":
    main()
