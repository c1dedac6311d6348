from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.fold import fold_batchnorm_
from normapps.norm.moments import Moments
from normapps.norm.partition import BATCH
from normapps.quant.input_means import input_means

PICTURES = torch.zeros(2, 3, 12, 12)


def moments(channels: int, seed: int) -> Moments:
    """Some β and γ² of the size that trained networks have."""
    generator = torch.Generator().manual_seed(seed)
    mean = 0.8 * torch.randn(1, channels, generator=generator)
    var = (0.3 + torch.rand(1, channels, generator=generator)).square()
    return Moments(torch.zeros(1), mean, var, None, BATCH)


def relu_mean(known: Moments) -> Tensor:
    """βΦ(β/s) + sφ(β/s) in float64, by `math`."""
    found = []
    for beta, var in zip(known.mean[0].tolist(), known.var[0].tolist(), strict=True):
        s = math.sqrt(var)
        z = beta / s
        big, small = (1 + math.erf(z / math.sqrt(2))) / 2, math.exp(-z * z / 2)
        found.append(beta * big + s * small / math.sqrt(2 * math.pi))
    return torch.tensor(found, dtype=torch.float64)


class Net(nn.Module):
    """Chains, an in-place sum, a gate, a pooled linear layer, and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.unused = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(2, 2)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.act, self.last_act = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.deep, self.pool = nn.Conv2d(8, 6, 3, stride=2), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.stem(x))
        whole = self.left(y)
        whole += self.right(y)  # in place: what was known of it no longer holds
        z = self.last_act(self.deep(self.last_act(whole)))
        found: Tensor = self.head(self.pool(z).flatten(1))
        return found


KNOWN = {"stem": 8, "left": 8, "right": 8, "deep": 6}
LAYERS = ("stem", "left", "right", "deep", "head", "unused")


def statistics() -> dict[str, Moments]:
    return {name: moments(size, seed) for seed, (name, size) in enumerate(KNOWN.items())}


def test_a_chain_is_known_in_closed_form() -> None:
    known = statistics()
    found, _ = input_means(Net(), PICTURES, known, LAYERS)
    for name in ("left", "right"):
        assert found[name].is_exact
        assert found[name].size == (12, 12)
        torch.testing.assert_close(found[name].mean, relu_mean(known["stem"]), rtol=0, atol=1e-6)


def test_a_sum_and_a_pooling_are_known_by_sampling() -> None:
    known = statistics()
    found, _ = input_means(Net(), PICTURES, known, LAYERS)
    both = Moments(
        torch.zeros(1),
        known["left"].mean + known["right"].mean,
        known["left"].var + known["right"].var,
        None,
        BATCH,
    )
    for name, wanted in (("deep", relu_mean(both)), ("head", relu_mean(known["deep"]))):
        assert not found[name].is_exact
        torch.testing.assert_close(found[name].mean, wanted, rtol=0, atol=0.06)
    more, _ = input_means(Net(), PICTURES, known, LAYERS, samples=512)
    torch.testing.assert_close(more["deep"].mean, relu_mean(both), rtol=0, atol=0.01)


def test_what_depends_on_the_pictures_is_not_known_and_the_reason_is_said() -> None:
    found, reasons = input_means(Net(), PICTURES, statistics(), LAYERS)
    assert set(found) == {"left", "right", "deep", "head"}
    assert "depends on the model's own input" in reasons["stem"]
    assert "does not call it" in reasons["unused"]
    fewer = statistics()
    del fewer["right"]  # now the sum hangs on what the right branch makes of what it reads
    assert "deep" in input_means(Net(), PICTURES, fewer, LAYERS)[0]
    del fewer["stem"]
    _, reasons = input_means(Net(), PICTURES, fewer, LAYERS)
    assert set(reasons) == {"stem", "left", "right", "deep", "unused"}


def test_a_batch_norm_that_still_stands_says_what_it_gives() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    given = moments(5, 3)
    norm.weight.data, norm.bias.data = given.var[0].sqrt(), given.mean[0]
    norm.running_mean, norm.running_var = torch.full((5,), 40.0), torch.full((5,), 9.0)
    other = nn.Conv2d(2, 2, 1)
    model.append(other)
    found, _ = input_means(model, PICTURES, {"3": moments(2, 0)}, ["0", "3", "4"], samples=256)
    assert set(found) == {"3", "4"}
    torch.testing.assert_close(found["3"].mean, relu_mean(given), rtol=0, atol=0.02)
    torch.testing.assert_close(found["4"].mean, moments(2, 0).mean[0].double())


def test_behind_two_activations_it_is_sampled() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Tanh(), nn.Conv2d(4, 2, 1))
    known = moments(4, 0)
    found, _ = input_means(model, PICTURES, {"0": known}, ["3"], samples=256)
    assert not found["3"].is_exact
    draws = torch.randn((200_000, 4), generator=torch.Generator().manual_seed(7))
    wanted = (known.mean + known.var.sqrt() * draws).relu().tanh().double().mean(0)
    torch.testing.assert_close(found["3"].mean, wanted, rtol=0, atol=0.01)


def test_a_layer_that_is_called_twice_reads_the_mean_of_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.shared(self.shared(self.first(x)))
            return found

    known = {"first": moments(4, 0), "shared": moments(4, 1)}
    found, _ = input_means(Twice(), torch.zeros(2, 3), known, ["shared"])
    wanted = (known["first"].mean + known["shared"].mean)[0].double() / 2
    torch.testing.assert_close(found["shared"].mean, wanted)


def test_the_model_the_global_generator_and_the_result_stay_the_same() -> None:
    model, known = Net().train(), statistics()
    state = torch.get_rng_state()
    first, _ = input_means(model, PICTURES, known, LAYERS)
    again, _ = input_means(model, PICTURES + 5, known, LAYERS)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, each in first.items():
        assert torch.equal(each.mean, again[name].mean)
    other, _ = input_means(model, PICTURES, known, LAYERS, seed=1)
    assert not torch.equal(first["deep"].mean, other["deep"].mean)


def test_functional_activations_and_arguments_of_all_kinds() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor, index: Tensor, scale: float) -> Tensor:
            y = F.relu(self.norm(input=self.first(input=x))) * scale
            found: Tensor = self.second(input=y)
            return found[index]

    model, known, given = Gated(), {"first": moments(4, 1)}, moments(4, 0)
    model.norm.weight.data, model.norm.bias.data = given.var[0].sqrt(), given.mean[0]
    arguments = (PICTURES, torch.tensor([1, 0]), 2.0)
    found, _ = input_means(model, arguments, known, ["second"], samples=64)
    wanted = 2 * relu_mean(given)
    torch.testing.assert_close(found["second"].mean, wanted, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda known: known.clear(), "no statistics: no batch norm"),
        (lambda known: known.update(deap=moments(6, 0)), "'deap'; did you mean 'deep'"),
        (lambda known: known.update(deep=moments(5, 0)), "'deep' gives 6 channels"),
        (lambda known: known["deep"].mean.fill_(math.nan), "'deep': its statistics are not finite"),
        (lambda known: known["deep"].var.fill_(-1.0), "'deep': its statistics are not finite"),
    ],
)
def test_statistics_that_cannot_be_used(change: object, line: str) -> None:
    known = statistics()
    assert callable(change)
    change(known)
    with pytest.raises(InputError, match=line):
        input_means(Net(), PICTURES, known, LAYERS)


def test_a_model_that_does_not_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    statistics = fold_batchnorm_(model, torch.randn(2, 3, 4, 4)).statistics
    with pytest.raises(InputError, match="Sequential does not run on an input of shape"):
        input_means(model, torch.zeros(1, 5, 4, 4), statistics, ["0"])
