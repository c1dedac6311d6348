"""What networks answer to the pictures that judge: by torch, and as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..engine.device import place
from ..measure.stages import Prediction, Stage, compare, predict
from ..models.program import Program, open_network
from .pictures import Seen

BASE = "float"


def judge_files(
    model: nn.Module,
    files: Mapping[str, Path | Program],
    seen: Seen,
    *,
    output: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Stage, ...]:
    """Compare files with the network that they were made of, on pictures.

    Args:
        model: a classifier in float32, on the CPU, where it is again afterwards.
        files: ONNX or programs, by the name of their stage.
        seen: pictures; those that calibrated do not judge.
        output: number of the files' output that holds the logits.
        device: where the float network runs; the files run on the CPU.

    Returns:
        The float network, named `BASE`, then a stage a file.

    Raises:
        InputError: no picture is left to judge by, or a file that does not run.
    """
    where = torch.device(device)
    place(model, where)
    try:
        base = predict(model, _on(seen, where))
    finally:
        model.to("cpu")
    stages = [compare(BASE, base)]
    for name, path in files.items():
        stages.append(compare(name, answers_of(path, seen, base.labels, output), base))
    return tuple(stages)


def answers_of(
    file: Path | Program, seen: Seen, labels: Tensor | None, output: int = 0
) -> Prediction:
    """Return what a file says to the pictures that judge."""
    session = open_network(file)
    name = session.output_names[output]
    logits = [
        session.run(images.numpy(), [name])[0].astype(np.float32) for images, _ in seen.judged()
    ]
    return Prediction(torch.from_numpy(np.concatenate(logits)), labels)


def _on(seen: Seen, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    for images, labels in seen.judged():
        yield images.to(device), labels
