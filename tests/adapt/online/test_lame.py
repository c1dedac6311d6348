from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.adapt.online.lame import adjust, affinity, classifier_of, lame
from normapps.errors import InputError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 4)).eval()


def _batch(count: int = 20) -> Tensor:
    return 2 * torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def _reference(features: np.ndarray, logits: np.ndarray, k: int, weight: float) -> np.ndarray:
    """Equation 6 of the paper, sample by sample in float64, for 100 iterations."""
    count = len(features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = []
    for i in range(count):
        far = sorted((np.sum((unit[i] - unit[j]) ** 2), j) for j in range(count) if j != i)
        near.append([j for _, j in far[:k]])
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    z = p.copy()
    for _ in range(100):
        pull = np.stack([z[near[i]].sum(0) for i in range(count)])
        z = p * np.exp(weight * pull)
        z /= z.sum(1, keepdims=True)
    return z


@pytest.mark.parametrize(("neighbours", "weight"), [(5, 1.0), (2, 0.3), (40, 1.0)])
def test_the_answer_is_the_papers(neighbours: int, weight: float) -> None:
    net, x = _net(), _batch()
    with torch.no_grad():
        features = net[:3](x)
        logits = net(x)
    online = lame(net, neighbours=neighbours, weight=weight)
    expected = _reference(
        features.double().numpy(), logits.double().numpy(), min(neighbours, 19), weight
    )
    found = online(x)
    assert np.abs(found.exp().numpy() - expected).max() < 1e-4
    assert online.facts["iterations"] < 100
    changed = float((found.argmax(1) != logits.argmax(1)).float().mean())
    assert online.facts["changed"] == changed > 0


def test_no_parameter_changes() -> None:
    net = _net()
    online = lame(net)
    online(_batch())
    for name, value in online.export().state_dict().items():
        assert torch.equal(value, net.state_dict()[name])


def test_a_batch_of_one_has_the_sources_logits() -> None:
    net, x = _net(), _batch(1)
    assert torch.equal(lame(net)(x), net(x))


def test_neighbours_settle_what_one_sample_is_unsure_of() -> None:
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.95, 0.0], [0.0, 1.0]])
    logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [-0.2, 0.0], [0.0, 3.0]])
    z, _ = adjust(logits, affinity(features, 2))
    assert z.argmax(1).tolist() == [0, 0, 0, 1]


def test_affinity_is_by_direction_and_never_to_oneself() -> None:
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 2.0], [0.1, 1.0], [2.0, 0.0]])
    near = affinity(features, 1)
    assert near.sum(1).tolist() == [1.0] * 5
    assert near.diagonal().tolist() == [0.0] * 5
    assert near.argmax(1).tolist() == [
        4,
        near[1].argmax(),
        3,
        2,
        0,
    ]  # an equal sample is a neighbour


def test_a_class_that_is_ruled_out_stays_out_and_nothing_is_nan() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.5, 0.0, -math.inf], [0.1, 0.0, -math.inf]])
    z, _ = adjust(logits, affinity(torch.eye(3), 2))
    assert z.isfinite().all()
    assert z[:, 2].exp().max() < 1e-8


def test_half_precision_comes_back_in_its_dtype() -> None:
    logits = lame(_net().bfloat16())(_batch().bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


class _Named(nn.Module):
    """timm's way to name the classifier, which is not the last linear layer here."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Linear(12, 3), nn.Linear(1, 1)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


def test_the_classifier_is_the_named_one_or_the_last_linear() -> None:
    net, named = _net(), _Named()
    assert classifier_of(net) is net[3]
    assert classifier_of(named) is named.head
    assert classifier_of(nn.Sequential(nn.Conv2d(3, 4, 1))) is None


def test_features_are_those_before_the_named_classifier() -> None:
    net, x = _Named(), _batch()
    with torch.no_grad():
        expected, _ = adjust(net(x), affinity(x.flatten(1), 5))
    torch.testing.assert_close(lame(net)(x), expected)


def test_without_a_linear_layer_the_logits_are_the_features() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten())
    x = _batch()
    with torch.no_grad():
        expected, _ = adjust(net(x), affinity(net(x), 5))
    torch.testing.assert_close(lame(net)(x), expected)


@pytest.mark.parametrize("options", [{"neighbours": 0}, {"weight": -1}, {"iterations": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be at least 1, 0 and 1"):
        lame(_net(), **options)  # type: ignore[arg-type]
