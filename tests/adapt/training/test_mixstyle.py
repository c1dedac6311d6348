"""MixStyle: moments mixed by their definition, in training only, reproducible, and taken off."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normapps.models  # noqa: F401  the guard before timm
from normapps.adapt.training.mixstyle import MixStyle, add_mixstyle_, mix_style
from normapps.errors import InputError


def _x(n: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, n + 1).view(-1, 1, 1, 1)
    return (torch.randn(n, 3, 4, 5, generator=generator) * spread + spread).to(dtype)


def _always(**options: Any) -> MixStyle:
    return MixStyle(p=1, generator=torch.Generator().manual_seed(3), **options)


def test_values() -> None:
    x, partner = _x(), torch.tensor([2, 0, 1, 3])
    share = torch.tensor([0.3, 0.0, 1.0, 0.6])
    data, eps = x.numpy(), 1e-6
    mean = data.mean((2, 3), keepdims=True)
    std = np.sqrt(((data - mean) ** 2).mean((2, 3), keepdims=True) + eps)
    weight = share.double().numpy().reshape(4, 1, 1, 1)
    other = partner.numpy()
    mean_mix = weight * mean + (1 - weight) * mean[other]
    std_mix = weight * std + (1 - weight) * std[other]
    expected = std_mix * (data - mean) / std + mean_mix
    np.testing.assert_allclose(mix_style(x, partner, share, eps).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(mix_style(x, partner, share, eps)[2].numpy(), data[2], rtol=1e-12)


def test_the_moments_are_constants() -> None:
    """The gradient is σ_mix/σ, to no other sample, and not that of a normalization."""
    x = _x().requires_grad_()
    y = mix_style(x, torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.25))
    (grad,) = torch.autograd.grad(y[0, 1].sum(), x)
    std = x.detach()[:, 1].std((1, 2), unbiased=False)
    expected = (0.25 * std[0] + 0.75 * std[1]) / std[0]
    torch.testing.assert_close(grad[0, 1], expected.expand(4, 5), rtol=1e-5, atol=0)
    assert not grad[1:].any()
    assert not grad[0, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, partner, share = _x(dtype=torch.float32), torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.5)
    found = mix_style(x.to(dtype), partner, share)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), mix_style(x, partner, share), rtol=0.02, atol=0.05)


def test_inference_and_single_samples_are_left_alone() -> None:
    style, x = _always(), _x()
    assert not torch.equal(style(x), x)
    assert style.eval()(x) is x
    assert style.train()(x[:1]).equal(x[:1])
    assert style(x[:0]).shape == (0, 3, 4, 5)
    assert MixStyle(p=0)(x) is x


def test_how_often_and_how_much() -> None:
    style, x = MixStyle(generator=torch.Generator().manual_seed(1)), _x(2)
    mixed = sum(style(x) is not x for _ in range(400))
    assert 160 < mixed < 240  # 4 standard deviations
    share = style.shares(4000)
    assert share.min() >= 0
    assert share.max() <= 1
    assert abs(float(share.mean()) - 0.5) < 0.03
    # Beta(a, a) has the variance 1/(4(2a+1))
    assert abs(float(share.var()) - 1 / (4 * 1.2)) < 0.01


def test_one_seed_gives_the_same_bits() -> None:
    x = _x()
    first, again = _always(), _always()
    for _ in range(3):
        assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), first(x))
    torch.manual_seed(0)
    own = MixStyle(p=1)
    drawn = own(x)
    torch.manual_seed(0)
    assert torch.equal(own(x), drawn)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_partners(n: int) -> None:
    half = (n + 1) // 2
    seen = []
    for _ in range(5):
        seen.append(partner := _always().partners(n))
        assert sorted(partner.tolist()) == list(range(n))
    style = _always(mix="crossdomain")
    for _ in range(5):
        partner = style.partners(n)
        assert sorted(partner.tolist()) == list(range(n))
        assert (partner[: n - half] >= half).all()
        assert (partner[half:] < half).all()


def test_checkpointing_draws_the_same_again() -> None:
    x, layer = _x(), nn.Sequential(nn.Conv2d(3, 3, 1).double(), MixStyle(p=1), nn.ReLU())
    grads = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(0)
        layer.zero_grad()
        run(x).square().sum().backward()
        grads.append(layer[0].weight.grad.clone())
    assert torch.equal(*grads)


class Small(nn.Module):
    """Named as a ResNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.layer1 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.layer2, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer2(self.layer1(self.conv1(x))).mean((2, 3)))
        return logits


def _hooked(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if each._forward_hooks]


def test_hooks_mix_in_training_and_come_off() -> None:
    model, x = Small(), _x(dtype=torch.float32)
    plain, keys = model(x), list(model.state_dict())
    undo = add_mixstyle_(model, p=1, generator=torch.Generator().manual_seed(0))
    assert _hooked(model) == ["layer1", "layer2"]
    assert not torch.allclose(model(x), plain)
    assert torch.equal(model.eval()(x), plain)
    model.layer1.train()  # a part alone
    assert not torch.allclose(model(x), plain)
    assert list(model.state_dict()) == keys
    assert not torch.allclose(copy.deepcopy(model).train()(x), plain)
    undo()
    assert torch.equal(model.train()(x), plain)
    assert _hooked(model) == []


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_resnet", ["layer1", "layer2"]),
        ("test_efficientnet", ["blocks.0", "blocks.1"]),
        ("test_convnext", ["stages.0", "stages.1"]),
        ("mobilenetv3_small_050", ["blocks.0", "blocks.1"]),
        ("regnetx_002", ["s1", "s2"]),
    ],
)
def test_the_first_stages_of_timms_networks(name: str, stages: list[str]) -> None:
    import timm

    model = timm.create_model(name, num_classes=3)
    with add_mixstyle_(model, p=1):
        assert _hooked(model) == stages
        model(torch.randn(3, 3, 64, 64)).sum().backward()
    assert _hooked(model) == []


def test_torchvisions_resnets() -> None:
    from torchvision.models import resnet18

    model = resnet18()
    add_mixstyle_(model)
    assert _hooked(model) == ["layer1", "layer2"]


def test_layers_by_pattern() -> None:
    model = Small()
    add_mixstyle_(model, ["conv*", "layer1"])
    assert _hooked(model) == ["conv1", "layer1"]
    add_mixstyle_(model, "layer2")
    assert _hooked(model) == ["conv1", "layer1", "layer2"]


def test_what_does_not_fit() -> None:
    import timm

    with pytest.raises(InputError, match=r"unknown layer 'layer3'; did you mean 'layer"):
        add_mixstyle_(Small(), "layer3")
    with pytest.raises(InputError, match=r"Linear does not tell its stages; name the layers"):
        add_mixstyle_(nn.Linear(2, 2))
    model = timm.create_model("test_vit", num_classes=3)
    add_mixstyle_(model)
    with pytest.raises(InputError, match=r"'blocks.0' returns \(2, 101, 64\), .* \(N, C=64, \*S\)"):
        model(torch.randn(2, 3, 160, 160))
    with pytest.raises(InputError, match=r"MixStyle got \(2, 3\), needs"):
        _always()(torch.zeros(2, 3))
    for options, message in (
        ({"p": 1.5}, "p 1.5: must be within 0 and 1"),
        ({"alpha": 0.0}, "alpha 0.0: must be above 0"),
        ({"mix": "cross"}, "unknown mix 'cross'"),
    ):
        with pytest.raises(InputError, match=message):
            MixStyle(**options)  # type: ignore[arg-type]
