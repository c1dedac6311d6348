"""Keeping colours in numpy gives torch's picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normapps.errors import InputError
from normapps.style.color import preserve_color as in_torch
from normapps.style.onnx.color import preserve_color


@pytest.mark.parametrize("mode", ["luma", "transport"])
def test_it_is_torchs_in_float64(mode: str, astronaut: np.ndarray, coffee: np.ndarray) -> None:
    output, content = coffee[:200, :300], astronaut[:200, :300]
    pair = (
        torch.from_numpy(x.copy()).permute(2, 0, 1)[None].double() / 255 for x in (output, content)
    )
    want = in_torch(*pair, mode)[0].permute(1, 2, 0).mul(255).numpy()
    found = preserve_color(output, content, mode)
    assert found.dtype == np.uint8
    assert np.abs(found - want).max() <= 0.501  # rounded, and nothing else
    assert np.abs(found.astype(int) - output).mean() > 5  # and not the picture as it was


def test_none_changes_nothing_and_another_name_is_refused(coffee: np.ndarray) -> None:
    assert preserve_color(coffee, coffee, "none") is coffee
    with pytest.raises(InputError, match="did you mean 'luma'"):
        preserve_color(coffee, coffee, "lume")
