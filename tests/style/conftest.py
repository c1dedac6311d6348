"""Fixtures of the stylization tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normapps.models.vgg import Vgg19


@pytest.fixture(scope="session")
def random_vgg() -> Vgg19:
    """VGG-19 to relu4_1 with random weights that keep the signal's size; not to be changed.

    The definitions of the metrics do not depend on what the judge learnt.
    """
    torch.manual_seed(0)
    vgg = Vgg19("relu4_1")
    for conv in vgg.convs.values():
        assert isinstance(conv, nn.Conv2d)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return vgg.eval().requires_grad_(False)
