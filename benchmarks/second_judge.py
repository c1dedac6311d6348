"""A judge of style that no training of ours has seen.

The 16× narrower VGG-19 encoders of Collaborative Distillation (Wang et al., CVPR 2020): other
weights and widths than the VGG-19 that trains and judges, and one layer deeper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from normapps.models.vgg_files import read_cascade
from normapps.style.quality import Features


def load_second_judge(folder: Path, device: str = "cpu") -> Features:
    """Return features at relu5_1 … relu1_1, each of the encoder that was trained for it.

    Args:
        folder: of the weights `1SE.pth` … `5SD.pth`.
        device: where they run, in float32.

    Raises:
        InputError: weights are missing or damaged.
    """
    network = read_cascade([folder])[0].to(device).eval().requires_grad_(False)

    def features(pixels: np.ndarray) -> Sequence[Tensor]:
        image = torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            return [stage.encode(image) for stage in network.stages]

    return features
