"""Moment exchange: the features, the loss, and that it teaches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normapps.errors import InputError
from normapps.norm import BATCH, INSTANCE, LAYER, POSITION, Partition, groups
from normapps.norm.layers.moment_exchange import MomentExchange, moment_exchange

AXES = {"position": (1,), "instance": (2, 3), "layer": (1, 2, 3)}


def _input() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, 5).double().reshape(-1, 1, 1, 1)
    return torch.randn(4, 6, 3, 5, generator=generator, dtype=torch.float64) * scale + scale


@pytest.mark.parametrize("partition", [POSITION, INSTANCE, LAYER], ids=lambda each: each.kind)
def test_values(partition: Partition) -> None:
    x, order = _input(), torch.tensor([2, 0, 3, 1])
    values, axes = x.numpy(), AXES[partition.kind]
    mean = values.mean(axes, keepdims=True)
    std = np.sqrt(values.var(axes, keepdims=True) + 1e-5)
    expected = std[order] * (values - mean) / std + mean[order]
    np.testing.assert_allclose(moment_exchange(x, order, partition), expected, atol=1e-10)


def test_groups_of_channels_exchange_theirs() -> None:
    x, order = _input(), torch.tensor([1, 0, 3, 2])
    parts = [moment_exchange(part, order, LAYER) for part in x.chunk(3, 1)]
    torch.testing.assert_close(moment_exchange(x, order, groups(3)), torch.cat(parts, 1))


def test_the_own_moments_change_nothing() -> None:
    x = _input()
    torch.testing.assert_close(moment_exchange(x, torch.arange(4)), x)


def test_the_loss_mixes_labels_as_the_moments() -> None:
    generator = torch.Generator().manual_seed(3)
    exchange = MomentExchange(share=0.7, probability=1, generator=generator)
    x, labels = _input(), torch.tensor([0, 1, 2, 0])
    y = exchange(x)
    order = exchange.order
    assert order is not None
    torch.testing.assert_close(y, moment_exchange(x, order))
    logits = y.mean((2, 3))[:, :3]
    soft = 0.7 * F.one_hot(labels, 3) + 0.3 * F.one_hot(labels[order], 3)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(exchange.loss(F.cross_entropy, logits, labels), expected)


def test_inference_and_undrawn_steps_leave_everything() -> None:
    x, labels = _input(), torch.tensor([0, 1, 2, 0])
    for exchange in (MomentExchange(probability=1).eval(), MomentExchange(probability=0)):
        assert exchange(x) is x
        logits = x.mean((2, 3))
        expected = F.cross_entropy(logits, labels)
        torch.testing.assert_close(exchange.loss(F.cross_entropy, logits, labels), expected)
    assert MomentExchange(probability=1)(x[:0]).shape == (0, *x.shape[1:])


def test_a_seed_repeats_it() -> None:
    made = [MomentExchange(generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    found = [torch.stack([each(_input()) for _ in range(6)]) for each in made]
    assert torch.equal(*found)
    changed = [not torch.equal(step, _input()) for step in found[0]]
    assert 0 < sum(changed) < 6


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="partition 'batch' has no moments of one sample"):
        moment_exchange(_input(), torch.arange(4), BATCH)
    with pytest.raises(InputError, match=r"order \(3,\): must be \(4,\)"):
        moment_exchange(_input(), torch.arange(3))
    with pytest.raises(InputError, match=r"share 1.5: must be in 0…1"):
        MomentExchange(1.5)


def test_its_repr_says_what_it_does() -> None:
    assert repr(nn.Sequential(MomentExchange())).count("share=0.9, probability=0.5, position") == 1
