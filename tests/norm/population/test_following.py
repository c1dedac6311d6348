"""Following a stream: what is returned, and a model that comes back as it was.

The recurrence itself is checked where it is used, in tests/adapt/test_ema.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm.population import measure
from normapps.norm.population.following import follow


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.spare = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def _batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, 3, 6, 6) + n for n in (4, 3)]


def test_pooled_statistics_of_the_first_layer_are_the_measured_ones() -> None:
    model, batches = _Net(), _batches()
    pooled, expected = follow(model, batches, None), measure(model, batches)
    torch.testing.assert_close(pooled.layers["bn"].mean, expected.layers["bn"].mean)
    torch.testing.assert_close(pooled.layers["bn"].var, expected.layers["bn"].var)
    assert pooled.layers["bn"].count.tolist() == expected.layers["bn"].count.tolist()
    assert (pooled.samples, pooled.unreached, pooled.mode) == (7, ("spare",), None)
    assert pooled.fingerprint == expected.fingerprint


def test_moved_statistics_have_no_count() -> None:
    found = follow(_Net(), _batches(), 0.1)
    assert found.samples is None
    assert found.layers["bn"].count.tolist() == [0]


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_the_model_comes_back_whatever_happens(momentum: float | None) -> None:
    model = _Net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    buffers = [id(each) for each in model.buffers()]
    follow(model, [{"image": x} for x in _batches()], momentum)
    with pytest.raises(InputError, match="layer 'bn': activations are not finite"):
        follow(model, [_batches()[0] * float("nan")], momentum)
    with pytest.raises(InputError, match="without inputs"):
        follow(model, [_batches()[0], "none"], momentum)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert [id(each) for each in model.buffers()] == buffers
    assert all(module.training for module in model.modules())
    assert not model.bn._forward_pre_hooks


def test_limit_cuts_and_progress_is_told() -> None:
    seen: list[int] = []
    found = follow(_Net(), _batches(), None, limit=5, progress=seen.append)
    assert (found.samples, seen) == (5, [4, 1])
