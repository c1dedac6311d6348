"""Feeding: the faster memory format where a model can take it, and the given one where not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normapps.norm.population.feeding import Feed
from normapps.norm.population.measuring import MODES, measure

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch is without oneDNN"
)


class Viewing(nn.Module):
    """Flattens its activations by `view`, which channels_last ones refuse; notes their formats."""

    def __init__(self, views: str = "all") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.bn2 = nn.BatchNorm1d(6)
        self.views, self.formats = views, list[bool]()
        for values in (self.bn1.running_mean, self.bn1.running_var, self.bn2.running_mean):
            nn.init.uniform_(values, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        self.formats.append(_is_last(x))
        self.noise = torch.rand(3)
        x = self.conv2(self.bn1(self.conv1(x)).relu())
        viewed = self.views == "all" or (self.views == "fours" and len(x) == 4)
        x = x.view(len(x), -1) if viewed else x.flatten(1)
        y: Tensor = self.bn2(x.unflatten(1, (6, -1)))
        return y


def _batches(*sizes: int) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(n, 3, 9, 9) * (i + 1) + i for i, n in enumerate(sizes)]


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("views", ["none", "all", "fours"])
def test_a_batch_begun_anew_counts_once(mode: str, views: str) -> None:
    """Whether none, all or only the second batch runs into a view."""
    model, batches = Viewing(views), _batches(5, 4, 7)
    found = measure(model, batches, mode=mode)
    formats = list(model.formats)  # before the copy that takes float64
    assert formats[0]
    assert formats == sorted(formats, reverse=True)  # once given up, for good
    assert all(formats) == (views == "none")
    expected = measure(copy.deepcopy(model).double(), batches, mode=mode)  # as they are given
    assert list(found.layers) == ["bn1", "bn2"]
    for name, moments in expected.layers.items():
        mine = found.layers[name]
        assert torch.equal(mine.count, moments.count)
        torch.testing.assert_close(mine.mean, moments.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.var, moments.var, rtol=1e-5, atol=0)
    if mode != "layerwise":
        wanted = {"none": [1, 1, 1], "all": [1, 0, 0, 0], "fours": [1, 1, 0, 0]}[views]
        assert formats == wanted


def test_a_batch_begun_anew_draws_the_same_numbers() -> None:
    model, batches = Viewing(), _batches(4, 4)
    torch.manual_seed(5)
    expected = [torch.rand(3) for _ in batches][-1]
    after = torch.get_rng_state()
    torch.manual_seed(5)
    measure(model, batches, mode="fixed")
    assert torch.equal(model.noise, expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_what_is_wrong_with_the_model_is_raised_plainly() -> None:
    class Broken(Viewing):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(f"broken at {_is_last(x)}")

    with pytest.raises(RuntimeError, match=r"^broken at False$") as caught:
        measure(Broken(), _batches(4))
    assert caught.value.__context__ is None


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(243, 2), nn.BatchNorm1d(2))


X = torch.randn(2, 3, 9, 9)
KEPT: dict[str, tuple[nn.Module, Tensor]] = {
    "no convolutions to speak of": (_mlp(), X),
    "float64": (nn.Conv2d(3, 3, 1).double(), X.double()),
    "three axes": (nn.Sequential(nn.Conv2d(3, 3, 1)), X[0]),
    "already so": (nn.Conv2d(3, 3, 1), X.to(memory_format=torch.channels_last)),
    "a device of its own": (nn.Conv2d(3, 3, 1, device="meta"), X.to("meta")),
}


@pytest.mark.parametrize("case", KEPT)
def test_where_nothing_is_gained_the_batch_itself_is_fed(case: str) -> None:
    model, x = KEPT[case]
    fed: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    Feed(model)(x, fed.clear)
    assert len(fed) == 1
    assert fed[0] is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_see_the_channels_last_and_the_same_values(dtype: torch.dtype) -> None:
    model, fed, x = nn.Conv2d(3, 3, 1).to(dtype), list[Tensor](), X.to(dtype)
    model.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    Feed(model)(x, fed.clear)
    assert len(fed) == 1
    assert _is_last(fed[0])
    assert torch.equal(fed[0], x)
    assert x.is_contiguous()
