"""How many scales the sparse training is to bring to 0: as many as the cut will take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure.report import JSON
from ..models.load import OpenedModel
from ..slim.choosing import choose
from ..slim.importance import all_equal, scales_of
from ..slim.prune_options import PruneOptions
from ..slim.tracing import trace
from ..training.classes import with_classes
from .options import CompressOptions

_LEAST, _MOST = 0.01, 0.99
"""What `slim train --target-sparsity` takes."""


@dataclass(frozen=True)
class Zeros:
    """What a sparse training was for, and what it came to.

    Attributes:
        wanted: share of the prunable scales that was to become 0.
        found: share that is.
    """

    wanted: float
    found: float


def penalty_of(options: CompressOptions, opened: OpenedModel, classes: int) -> dict[str, Any]:
    """Return the strength of the penalty, or the sparsity it is for, as `slim train` takes them.

    Where neither is given, pruning is planned for the network as it is: the share of the prunable
    scales that would go is what is trained for. It depends on the architecture: of depthwise layers
    more channels go for the same multiplications. Scales that were never trained rank nothing:
    then channels are drawn.

    Args:
        options: of the compression.
        opened: the given network.
        classes: that it is trained for.

    Raises:
        InputError: the amount that was asked for cannot be reached.
    """
    if options.strength is not None:
        return {"strength": options.strength}
    wanted = options.target_sparsity
    if wanted is None:
        made, _ = with_classes(opened, classes, options.seed)
        graph, inputs = trace(made.model, made.preprocessing, made.name)
        rank = "random" if all_equal(scales_of(made.model, graph)) else "scale"
        amount = PruneOptions(**options.amount, importance=rank, seed=options.seed)
        found = choose(made, graph, inputs, amount)
        wanted = round(min(_MOST, max(_LEAST, found.plan.reached["ratio"])), 4)
    return {"target_sparsity": wanted}


def zeros_of(folder: Path) -> Zeros | None:
    """Read what a sparse training came to; None where it had no target, or is not there."""
    if not (folder / JSON).is_file():
        return None
    told = json.loads((folder / JSON).read_text(encoding="utf-8"))
    chosen = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    wanted = chosen.get("target_sparsity")
    return None if wanted is None else Zeros(wanted, told["sparsity"]["after"]["zeros"])
