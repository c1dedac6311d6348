"""The bench of an evaluation: one model, one set of pictures, and any method run on them."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.appearance import Appearance
from ..data.pool import Pool
from ..engine.device import evaluating
from ..errors import InputError
from ..measure.memory import peak_bytes, peak_device_bytes
from ..models.outputs import logits_of
from ..models.preprocessing import Preprocessing
from .domains import Domains
from .evaluate_options import BASELINES
from .losses import entropy
from .methods import METHODS, create_method
from .runs import Cell, Part, Run, batches_of

Answer = Callable[[Tensor, Tensor], Tensor]
"""(n, C, H, W) uint8 pictures and (n,) their positions in the pool to logits (n, classes)."""


class Bench:
    """A model and pictures on which methods are run.

    Args:
        model: the source, on its device, in inference mode; copies of it adapt.
        pool: the pictures.
        preprocessing: how bytes become the model's input.
        references: what histogram and fda take the look from, (H, W, C) uint8 each.
        device, dtype: of the model.

    Attributes:
        classes: outputs of the model.

    Raises:
        InputError: the model returns no finite logits.
    """

    def __init__(
        self,
        model: nn.Module,
        pool: Pool,
        preprocessing: Preprocessing,
        references: tuple[np.ndarray, ...] = (),
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.pool, self.preprocessing = model, pool, preprocessing
        self.references, self.dtype = references, dtype
        self.device = device or torch.device("cpu")
        self.domains = Domains(pool)
        with evaluating(model):
            logits = logits_of(model(self._input(pool.images[:1])))
        if not logits.isfinite().all():
            raise InputError(
                "the model's outputs are not finite on the first picture; check its weights"
            )
        self.classes = logits.shape[1]

    def run(self, run: Run, labels: Tensor | None, tick: Callable[[], object]) -> tuple[Cell, ...]:
        """Run one method from a fresh state over one order; a cell for each domain.

        A method that cannot take the model or the batches has cells that say why.
        """
        try:
            batches = batches_of(run, len(self.pool), labels)
            answer, least = self._method(run)
            if min(sum(len(each) for _, each in parts) for parts in batches) < least:
                return _without(run, f"needs {least}")
            return self._cells(run, batches, answer, tick)
        except InputError as error:
            return _without(run, str(error))

    def _cells(
        self,
        run: Run,
        batches: list[list[Part]],
        answer: Answer,
        tick: Callable[[], object],
    ) -> tuple[Cell, ...]:
        classes = {name: torch.zeros(len(self.pool), dtype=torch.int64) for name in run.domains}
        sums, seconds = dict.fromkeys(run.domains, 0.0), 0.0
        can_tell = _forget_peak(self.device)
        for parts in batches:
            pictures = [self.domains.images(name, run.seed, each) for name, each in parts]
            images, indices = torch.cat(pictures), torch.cat([each for _, each in parts])
            start = time.perf_counter()
            logits = answer(images, indices).float().cpu()
            seconds += time.perf_counter() - start
            if not logits.isfinite().all():
                return _without(run, "its outputs became not finite")
            for (name, each), part in zip(
                parts, logits.split([len(each) for _, each in parts]), strict=True
            ):
                classes[name][each] = part.argmax(1)
                sums[name] += float(entropy(part).sum())
            tick()
        peak = peak_device_bytes(self.device) or peak_bytes() if can_tell else None
        count = len(self.pool)
        return tuple(
            Cell(
                run,
                name,
                tuple(classes[name].tolist()),
                sums[name] / count,
                seconds / (count * len(run.domains)),
                peak,
            )
            for name in run.domains
        )

    def _method(self, run: Run) -> tuple[Answer, int]:
        """A function of uint8 pictures and their positions to logits, and its least batch."""
        if run.method in BASELINES:
            return self._baseline(run), 1
        known = METHODS[run.method].options if run.method in METHODS else {}
        chosen = self.preprocessing
        ours = {"seed": run.seed, "mean": chosen.mean, "std": chosen.std}
        given: dict[str, Any] = {name: each for name, each in ours.items() if name in known}
        online = create_method(run.method, self.model, **given)
        return lambda images, _: online(self._input(images)), online.least_batch

    def _baseline(self, run: Run) -> Answer:
        look = Appearance(run.method, self.references, run.seed)

        def answer(images: Tensor, indices: Tensor) -> Tensor:
            pairs = zip(images.permute(0, 2, 3, 1).numpy(), indices.tolist(), strict=True)
            changed = np.stack([look(np.ascontiguousarray(image), i) for image, i in pairs])
            with evaluating(self.model):
                inputs = self._input(torch.from_numpy(changed).permute(0, 3, 1, 2))
                return logits_of(self.model(inputs))

        return answer

    def _input(self, images: Tensor) -> Tensor:
        return self.preprocessing.normalize(images.to(self.device)).to(self.dtype)


def _without(run: Run, note: str) -> tuple[Cell, ...]:
    return tuple(Cell(run, domain, note=note) for domain in run.domains)


def _forget_peak(device: torch.device) -> bool:
    """Begin anew with the most memory used so far; False where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    # what methods before this one freed and the C library keeps would count as this one's
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return True
    return False
