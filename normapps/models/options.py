"""Options of every command that takes a MODEL: which weights it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..options import option, validate

MODEL_HELP = (
    "A model folder, a timm name, torchvision/NAME, package.module:factory, or a shipped network."
)


@dataclass(frozen=True)
class ModelOptions:
    """Where a model's weights come from; without any they are random, and that is said.

    Raises:
        InputError: a value out of range; the line names the flag.
    """

    pretrained: bool = option(False, "take the published weights (downloaded if not cached)")
    checkpoint: Path | None = option(None, "weight file to load: safetensors or PyTorch")
    num_classes: int | None = option(None, "outputs of the classifier", low=1)
    seed: int = option(0, "seed of random weights", low=0)

    def __post_init__(self) -> None:
        validate(self)
