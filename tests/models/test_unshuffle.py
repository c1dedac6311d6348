"""Pixels to cells: whichever way they are moved, the cells are those of torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from normapps.models.adain_tiny import AdainTiny, _unshuffle


def _pictures() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    batch = torch.rand(2, 3, 16, 24, generator=draw)
    shifted = torch.rand(2 * 3 * 16 * 24 + 1, generator=draw)[1:].view(2, 3, 16, 24)
    return {
        "float": batch,
        "double": batch.double(),
        "bytes": (batch * 255).to(torch.uint8),
        "channels last": batch.contiguous(memory_format=torch.channels_last),
        "shifted": shifted,
        "second": batch[1:],
        "with a gradient": batch.clone().requires_grad_(),
    }


@pytest.mark.parametrize("kind", list(_pictures()))
def test_cells_are_those_of_pixel_unshuffle(kind: str) -> None:
    picture = _pictures()[kind]
    cells = _unshuffle(picture, 4)
    assert torch.equal(cells, F.pixel_unshuffle(picture, 4))
    assert cells.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", list(_pictures()))
def test_encoding_leaves_the_picture_as_it_was(kind: str) -> None:
    picture = _pictures()[kind]
    before = picture.detach().clone()
    network = AdainTiny(8, 8, 8).to(torch.float64 if kind == "double" else torch.float32)
    features = network.encode(picture)
    assert torch.equal(picture, before)
    if picture.requires_grad:
        sum(x.sum() for x in features).backward()
        assert picture.grad is not None
        assert picture.grad.abs().sum() > 0
