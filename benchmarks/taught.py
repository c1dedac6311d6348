"""Train the stylizer that ships with a teacher beside VGG: MicroAST's published network.

A pair's picture by MicroAST says everywhere what VGG's statistics say of the whole only: which
colour goes where, and, by VGG's deeper features, which of the photograph's shapes it is to show.
VGG's terms, and the photograph's structure, pull beyond the teacher.

    python benchmarks/taught.py RUN --steps 4000

goes on with what RUN holds, as `normapps style train` does; `publish_stylizer.py RUN` ships it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from microast import MicroAST
from peers import SHARED
from torch import Tensor

from normapps.allocator import keep_freed_memory
from normapps.style.draws import Batch, look
from normapps.style.options import TrainOptions
from normapps.style.training import StyleTask, losses, train

CONTENTS = ("bsds300.tar", "imagenet_sample_1000.tar", "pacs_photo.tar")

CELL = 4
"""Pixels a side: the period of the fine grid in the teacher's pictures, which means do not see."""

SHAPES = slice(2, 4)
"""Of `LAYERS`: those in which the teacher's shapes are compared, too coarse for its fine grid."""


class Taught(StyleTask):
    """The step of `normapps style train` and two terms more: the teacher's colours and shapes.

    Args:
        weight: of the mean absolute difference of means over cells of `CELL` pixels.
        shape_weight: of the relative squared distance of VGG's features at `SHAPES`.
    """

    trainer = "benchmarks/taught.py"

    def __init__(self, *args: Any, weight: float, shape_weight: float) -> None:
        super().__init__(*args)
        self.weight, self.shape_weight = weight, shape_weight
        dtype = torch.bfloat16 if self.is_half else torch.float32
        teacher = MicroAST(SHARED / "weights" / "microast")
        self.teacher = teacher.to(self.device, dtype, memory_format=torch.channels_last)

    def terms(self, output: Tensor, identity: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss and their `total`."""
        seen = look(self.vgg, output, self.options.paint)
        terms = losses(output, identity, batch, seen, self.options)
        colors, shapes = self._shown(batch)
        terms["taught"] = F.l1_loss(F.avg_pool2d(output[: len(colors)], CELL), colors)
        terms["shapes"] = _distance(seen[SHAPES], shapes)
        weighted = self.weight * terms["taught"] + self.shape_weight * terms["shapes"]
        terms["total"] = terms["total"] + weighted
        return terms

    @torch.no_grad()
    def _shown(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Half of the pairs as the teacher, who is dear, paints them.

        Returns:
            (N/2, 3, S/4, S/4) colours, and VGG's features at `SHAPES`.
        """
        dtype, half = next(self.teacher.parameters()).dtype, -(-len(batch.content) // 2)
        content, style = (x[:half].to(dtype) for x in (batch.content, batch.style))
        drawn: Tensor = self.teacher(content, self.teacher.signals(style)).float().clamp(0, 1)
        return F.avg_pool2d(drawn, CELL), look(self.vgg, drawn, self.options.paint)[SHAPES]


def _distance(features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared distance over squared size, a mean over layers; features of more pairs are cut."""
    pairs = [(x[: len(y)].float(), y.float()) for x, y in zip(features, wanted, strict=True)]
    return torch.stack([F.mse_loss(x, y) / y.square().mean() for x, y in pairs]).mean()


def main() -> None:
    options = _arguments()
    keep_freed_memory()
    task = partial(Taught, weight=options.taught_weight, shape_weight=options.shape_weight)
    train(_options(options), options.run, task)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", default="adain-tiny")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--reuse", type=int, default=4)
    parser.add_argument("--crop", type=int, default=144)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--decay", type=float, default=0.6)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--content-weight", type=float, default=0.2)
    parser.add_argument("--style-weight", type=float, default=40.0)
    parser.add_argument("--gram-weight", type=float, default=12.0)
    parser.add_argument("--identity-weight", type=float, default=4.0)
    parser.add_argument("--structure-weight", type=float, default=3.0)
    parser.add_argument("--lattice-weight", type=float, default=3.0)
    parser.add_argument("--taught-weight", type=float, default=20.0)
    parser.add_argument("--shape-weight", type=float, default=0.0)
    return parser.parse_args()


_OWN = ("run", "taught_weight", "shape_weight")


def _options(chosen: argparse.Namespace) -> TrainOptions:
    data = SHARED / "data"
    values = {k: v for k, v in vars(chosen).items() if k not in _OWN}
    return TrainOptions(
        contents=tuple(str(data / name) for name in CONTENTS),
        styles=(str(data / "pacs_art_painting.tar"),),
        methods=("adain", "adain", "adain", "wct", "ot", "cholesky"),
        device="auto",
        save_every=100,
        **values,
    )


if __name__ == "__main__":
    main()
