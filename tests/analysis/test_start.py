"""The gradient that steps begin with, against torch's own training step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from known_networks import normalized, pictures
from torch import nn

from normapps.analysis.gap import output_gap
from normapps.analysis.invariance import scale_invariance
from normapps.analysis.predictiveness import predictiveness
from normapps.analysis.start import Start

LABELS = torch.arange(16) % 4


def test_a_training_step_has_the_same_gradient() -> None:
    model, other = (normalized(nn.BatchNorm2d(8)) for _ in range(2))
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = Start.of(model, (pictures(16), LABELS))
    logits = other.train()(pictures(16))
    loss = F.cross_entropy(logits, LABELS)
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()))
    assert torch.allclose(found.logits, logits)
    assert found.gradients.keys() == dict(other.named_parameters()).keys()
    for name, each in other.named_parameters():
        assert each.grad is not None
        assert torch.allclose(found.gradients[name], each.grad, atol=1e-7), name
    made = other[0](pictures(16)).detach().double()
    wanted = made.var((0, 2, 3), correction=0).median()
    assert found.variances["0"] == pytest.approx(float(wanted), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1].training
    assert all(each.requires_grad and each.grad is None for each in model.parameters())


def test_what_a_loss_does_not_depend_on_is_missing() -> None:
    model = normalized(nn.BatchNorm2d(8))
    model.add_module("aside", nn.Linear(4, 4))
    model.aside.register_forward_hook(lambda module, inputs, y: inputs[0] + y.detach())
    found = Start.of(model, (pictures(16), None))
    assert found.gradients.keys() == {"0.weight", "1.weight", "1.bias", "5.weight", "5.bias"}
    assert torch.equal(found.labels, found.logits.argmax(1))


def test_analyses_find_the_same_with_a_start_that_is_known() -> None:
    model, batch = normalized(nn.BatchNorm2d(8)), (pictures(16), LABELS)
    start = Start.of(model, batch)
    assert scale_invariance(model, batch, start=start) == scale_invariance(model, batch)
    assert predictiveness(model, batch, start=start) == predictiveness(model, batch)
    assert output_gap(model, batch, start.logits) == output_gap(model, batch)
