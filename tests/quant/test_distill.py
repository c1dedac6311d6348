"""Distilled images have the statistics that a network stored, and its layers' ranges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.quant.distill import Distilled, distill, smooth_noise


def pictures(count: int, seed: int) -> Tensor:
    """(count, 3, 16, 16): blocks of one colour each, bounded as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    grey = torch.rand(count, 1, 4, 4, generator=generator)
    colour = 0.1 * torch.rand(count, 3, 4, 4, generator=generator)
    whole = (grey + colour).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (whole - whole.mean()) / whole.std()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Three convolutions whose batch norms have seen such pictures; the first one blurs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers: list[nn.Module] = []
        for width in (3, 12, 12):
            layers += [nn.Conv2d(width, 12, 3, padding=1), nn.BatchNorm2d(12, momentum=None)]
            layers += [nn.ReLU()]
        model = nn.Sequential(*layers).train()
    with torch.no_grad():
        model[0].weight.abs_()
        for seed in range(4):
            model(pictures(64, seed))
    return model.eval()


def inputs_of_norms(model: nn.Module, images: Tensor) -> list[tuple[nn.BatchNorm2d, Tensor]]:
    found = []
    with torch.no_grad():
        for layer in model.children():
            if isinstance(layer, nn.BatchNorm2d):
                found.append((layer, images))
            images = layer(images)
    return found


def mismatch(model: nn.Module, images: Tensor) -> float:
    """The documented loss in float64, the moments taken channel by channel."""
    layers = []
    for norm, x in inputs_of_norms(model, images):
        terms = []
        for channel in range(norm.num_features):
            values = x[:, channel].double().flatten()
            own = math.sqrt(float(norm.running_var[channel]) + norm.eps)
            mean = float(values.sum()) / len(values)
            var = float(((values - mean) ** 2).sum()) / len(values)
            terms.append(((mean - float(norm.running_mean[channel])) / own) ** 2)
            terms[-1] += (math.sqrt(var + norm.eps) / own - 1) ** 2
        layers.append(sum(terms) / len(terms))
    flat = images.double().transpose(0, 1).flatten(1)
    std = flat.var(1, unbiased=False).sqrt()
    layers.append(float((flat.mean(1).square() + (std - 1).square()).mean()))
    return sum(layers) / len(layers)


def highest(model: nn.Module, images: Tensor) -> Tensor:
    """The largest output of each batch norm, the range that the layer behind it is to cover."""
    return torch.stack([norm(x).max() for norm, x in inputs_of_norms(model, images)]).detach()


@pytest.fixture(scope="module")
def distilled(network: nn.Module) -> Distilled:
    return distill(network, 12, 16, steps=80, batch_size=12, seed=1)


def test_images_match_the_stored_statistics_far_better_than_noise(
    network: nn.Module, distilled: Distilled
) -> None:
    assert distilled.images.shape == (12, 3, 16, 16)
    noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert mismatch(network, distilled.images) < 0.02 * mismatch(network, noise)


def test_the_loss_is_the_documented_one(network: nn.Module, distilled: Distilled) -> None:
    (losses,) = distilled.losses
    assert min(losses) == pytest.approx(mismatch(network, distilled.images), rel=1e-4)
    start = smooth_noise(12, 3, 16, 16, torch.Generator().manual_seed(1))
    assert losses[0] == pytest.approx(mismatch(network, start), rel=1e-4)
    assert distilled.curve() == losses


def test_ranges_come_near_those_of_pictures(network: nn.Module, distilled: Distilled) -> None:
    wanted = highest(network, pictures(64, 99))
    noise = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    off, off_noise = (
        (highest(network, each) / wanted).log2().abs() for each in (distilled.images, noise)
    )
    assert float(off.max()) < 0.5
    assert float(off.mean()) < 0.5 * float(off_noise.mean())


def test_batches_differ_and_one_seed_gives_the_same_images(network: nn.Module) -> None:
    def run(seed: int) -> Distilled:
        return distill(network, 5, (8, 12), steps=3, batch_size=3, seed=seed)

    first = run(4)
    assert first.images.shape == (5, 3, 8, 12)
    assert [len(each) for each in first.losses] == [3, 3]
    assert not torch.equal(first.images[0], first.images[3])
    assert torch.equal(first.images, run(4).images)
    assert not torch.equal(first.images, run(5).images)


def test_the_model_and_the_random_state_come_back(network: nn.Module) -> None:
    network[1].train()
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    distill(network, 2, 8, steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [layer.training for layer in network][:3] == [False, True, False]
    wanted = [each.requires_grad for each in network.parameters()]
    assert wanted == [False] + [True] * (len(wanted) - 1)
    assert all(each.grad is None for each in network.parameters())
    assert not any(each._forward_pre_hooks for each in network.modules())
    network[1].eval()
    network[0].weight.requires_grad_(True)


def test_a_batch_that_stagnates_stops_and_progress_ends_at_its_total(network: nn.Module) -> None:
    told: list[tuple[int, int]] = []
    norm = nn.BatchNorm2d(3)  # mean 0, deviation 1: what the images have from the start
    found = distill(norm, 2, 8, steps=400, batch_size=1, progress=lambda *each: told.append(each))
    taken = [len(each) for each in found.losses]
    assert max(taken) < 300
    assert told[0] == (1, 800)
    assert told[-1] == (sum(taken), sum(taken))
    assert sorted({done for done, _ in told}) == list(range(1, sum(taken) + 1))


def test_the_images_are_those_of_the_lowest_loss(network: nn.Module) -> None:
    found = distill(network, 4, 16, steps=12, lr=3.0)
    (losses,) = found.losses
    assert min(losses) < losses[-1]  # such steps jump about
    assert min(losses) == pytest.approx(mismatch(network, found.images), rel=1e-4)


def test_a_layer_called_twice_is_matched_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.norm.running_mean += 1  # of x and 3·x − 1 + 2·(mean of both = 1): no x alone

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(2 - x)

    found = distill(Twice(), 8, 8, steps=1)
    # both calls together have mean 1 whatever x is, each alone has not
    x = found.images.double()
    both = torch.cat([x, 2 - x]).transpose(0, 1).flatten(1)
    std = both.var(1, unbiased=False).add(1e-5).sqrt() / math.sqrt(1 + 1e-5)
    layer = ((both.mean(1) - 1) / math.sqrt(1 + 1e-5)).square() + (std - 1).square()
    flat = x.transpose(0, 1).flatten(1)
    own = flat.mean(1).square() + (flat.std(1, unbiased=False) - 1).square()
    assert found.losses[0][0] == pytest.approx(float((layer.mean() + own.mean()) / 2), rel=1e-4)


def test_smooth_noise_is_standard_and_its_neighbours_go_together() -> None:
    noise = smooth_noise(4, 3, 33, 20, torch.Generator().manual_seed(0)).double()
    assert noise.shape == (4, 3, 33, 20)
    assert noise.mean((2, 3)).abs().max() < 1e-6
    assert (noise.var((2, 3), unbiased=False) - 1).abs().max() < 1e-5
    assert float((noise[..., 1:] * noise[..., :-1]).mean()) > 0.5


def test_a_model_without_batch_norms_is_refused_in_a_line() -> None:
    with pytest.raises(InputError, match=r"Sequential has no batch norm.*before folding") as error:
        distill(nn.Sequential(nn.Conv2d(3, 4, 3)), 2, 8)
    assert "\n" not in str(error.value)


def test_a_model_whose_norms_are_not_called_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(InputError, match="Idle: its forward calls none of its batch norms"):
        distill(Idle(), 2, 8)


def test_images_that_the_model_does_not_take_are_named(network: nn.Module) -> None:
    with pytest.raises(InputError, match=r"fails on images of \(2, 1, 8, 8\).*channels"):
        distill(network, 2, 8, channels=1)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": -1.0}, {"batch_size": 0}, {"channels": 0}])
def test_numbers_that_are_not_positive_are_refused(
    network: nn.Module, wrong: dict[str, int]
) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} .*must be positive"):
        distill(network, 2, 8, **wrong)


def test_statistics_that_are_not_finite_are_refused() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean[1] = math.nan
    with pytest.raises(InputError, match="the loss is nan"):
        distill(norm, 2, 8)


def test_half_precision_and_whitening_layers_are_matched() -> None:
    from normapps.norm.convert import convert_norm

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()
    found = distill(model.to(torch.bfloat16), 4, 8, steps=2)
    assert found.images.dtype is torch.float32
    white = convert_norm(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), "batch")
    assert len(distill(white, 4, 8, steps=2).losses[0]) == 2
