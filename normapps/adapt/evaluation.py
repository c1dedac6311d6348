"""Evaluating test-time methods: one protocol for all of them, one table.

Every method sees the same bytes in the same order: pictures are decoded once, corrupted once a
seed, and cut into the same batches. A method starts from the source model at each run; what it
answers to a batch is what it answers while adapting to it, as in the papers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.labels import fitting_labels
from ..data.pictures import Pictures
from ..data.pool import Pool
from ..engine.device import place, resolve_device, resolve_dtype
from ..files import check_folder
from ..measure.report import Verdict
from ..models.load import open_by
from ..models.options import preprocessing_of
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from ..models.trying import check_finite, try_out
from .bench import Bench
from .cells import Cells
from .evaluate_options import BASELINES, EvaluateOptions
from .runs import Cell, Run, planned
from .scores import Row, rows_of, verdict_of

Advance = Callable[[str, int], object]
"""Called with what is at work, after each batch, and the number of batches in all."""

_MOST_REFERENCES = 64


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model, preprocessing, data: in words, a line each.
        classes: outputs of the model.
        failed: a line for each picture that could not be read.
        without_accuracy: why accuracy was not measured; empty where it was.
        rows: the table.
        verdict: whether a method helps.
        options: as given.
    """

    model: str
    preprocessing: str
    data: str
    classes: int
    failed: tuple[str, ...]
    without_accuracy: str
    rows: tuple[Row, ...]
    verdict: Verdict
    options: EvaluateOptions


def evaluate(
    spec: str,
    data: str,
    options: EvaluateOptions,
    folder: Path | None = None,
    say: Callable[[str], object] = print,
    advance: Advance | None = None,
) -> Evaluation:
    """Compare test-time methods on pictures and corruptions of them.

    Args:
        spec: the model, as `open_model` takes it.
        data: folder, tar, ZIP, text list or picture; labelled by folders or list, or not at all.
        options: methods, corruptions, batch sizes, streams, seeds.
        folder: where finished runs are kept (`cells.jsonl`), so that the same call goes on where
            it was interrupted, and a call for more computes what is new.
        say: told what was opened and decided, a line each.
        advance: told of every batch.

    Raises:
        InputError: a model or pictures that cannot be used, or a folder of another protocol.
    """
    if folder is not None:
        check_folder(folder)
    device = resolve_device(options.device)
    opened = open_by(spec, options)
    check_finite(opened.model, str(options.checkpoint or opened.name))
    chosen = preprocessing_of(opened, options)
    say(opened.describe())
    say(chosen.describe())
    dtype = resolve_dtype(options.dtype, device)
    model = place(opened.model, device, dtype)
    logits_of(try_out(model, chosen, opened.name))
    pictures = Pictures(data, chosen, limit=options.limit)
    pool = Pool.read(pictures)
    references = _references(options, chosen)
    bench = Bench(model, pool, chosen, references, device, dtype)
    labels, without = fitting_labels(pictures, pool.labels, bench.classes, opened.classes)
    if without:
        say(f"no accuracy: {without}")
    protocol = _protocol(opened.model, pool, chosen, references, f"{device.type} {dtype}")
    cells = Cells(folder, protocol, options.overwrite)
    found = _run_all(bench, planned(options), labels, cells, advance or _quiet)
    return Evaluation(
        opened.describe(),
        chosen.describe(),
        f"{len(pool)} pictures of {data}",
        bench.classes,
        pool.failed,
        without,
        tuple(rows_of(found, labels)),
        verdict_of(found, labels),
        options,
    )


def _run_all(
    bench: Bench, runs: list[Run], labels: Tensor | None, cells: Cells, advance: Advance
) -> list[Cell]:
    """Take finished runs from the folder, run the others."""
    count = len(bench.pool)
    lengths = {run: math.ceil(count * len(run.domains) / run.batch_size) for run in runs}
    total = sum(length for run, length in lengths.items() if cells.get(run) is None)
    found: list[Cell] = []
    for run in runs:
        finished = cells.get(run)
        if finished is None:
            name = f"{run.method} {run.stream} {' '.join(run.domains)} batch {run.batch_size}"
            finished = bench.run(run, labels, partial(advance, name, total))
            total -= lengths[run] if finished[0].note else 0
            cells.add(finished)
        found.extend(finished)
    return found


def _references(options: EvaluateOptions, chosen: Preprocessing) -> tuple[np.ndarray, ...]:
    if options.references is None or not set(BASELINES) & set(options.method_names()):
        return ()
    pictures = Pictures(options.references, chosen, limit=_MOST_REFERENCES)
    return tuple(Pool.read(pictures).images.permute(0, 2, 3, 1).contiguous().numpy())


def _protocol(
    model: nn.Module,
    pool: Pool,
    chosen: Preprocessing,
    references: tuple[np.ndarray, ...],
    arithmetic: str,
) -> Mapping[str, Any]:
    """All that a cell depends on beside its run."""
    return {
        "model": _digest(*(each for _, each in sorted(model.state_dict().items()))),
        "pictures": _digest(pool.images, *([] if pool.labels is None else [pool.labels])),
        "preprocessing": chosen.to_json() | {"origin": ""},
        "arithmetic": arithmetic,
        "references": _digest(*map(torch.from_numpy, references)) if references else "",
    }


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{tuple(plain.shape)} {plain.dtype}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _quiet(name: str, total: int) -> None:
    """Tell nobody."""
