"""Folding: what is folded computes the same, what stays says why, and undo restores every bit."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import random_scales_
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

import normapps.models  # noqa: F401 -- the guard that timm needs beside torch without CUDA
from normapps.errors import InputError
from normapps.graph import fold_plan
from normapps.graph.fold import Folded, Folding, fold_batchnorm, fold_batchnorm_
from normapps.norm.convert import convert_norm_, freeze_norm_
from normapps.norm.domain import DomainModel
from normapps.norm.registry import create_norm

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Wired(nn.Module):
    """Modules, and a forward that is given as a function of them and x."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


def _sequence(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _shaken(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_cov", None) is not None:
            root = torch.randn_like(module.running_cov)
            module.running_cov.copy_(root @ root.mT + torch.eye(root.shape[-1]))
            module.running_mean.normal_()
    return random_scales_(model)


def _folded(
    model: nn.Module, x: Tensor = IMAGES, dtype: torch.dtype = torch.float64
) -> dict[str, str]:
    """Fold and compare, undo and compare to the bit; returns where each norm went."""
    model, x = _shaken(model).to(dtype), x.to(dtype)
    before, layers = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    wanted = model(x).detach()
    folding = fold_batchnorm_(model, x)
    tolerance = 1e-10 if dtype is torch.float64 else 1e-4
    assert folding.difference <= tolerance
    scale = float(wanted.abs().max())
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=tolerance * scale)
    assert all(each.norm in layers for each in folding.folded)
    assert fold_batchnorm_(model, x).folded == ()
    folding()
    after = model.state_dict()
    assert dict(model.named_modules()) == layers
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    return {each.norm: f"{each.where} {', '.join(each.into)}" for each in folding.folded}


def _stays(model: nn.Module, x: Tensor = IMAGES, norm: str = "norm") -> str:
    """Fold; returns why a norm stays, which is in the network to the bit."""
    model, x = _shaken(model).double(), x.double()
    before = copy.deepcopy(model.state_dict())
    folding = fold_batchnorm_(model, x)
    reasons = dict(folding.left)
    assert norm in reasons, folding.folded
    own = [key for key in before if key.startswith(f"{norm}.")]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in own)
    return reasons[norm]


BEHIND: dict[str, Callable[[], nn.Module]] = {
    "without a bias": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "with a bias": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "padded by reflection": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, bias=False),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_a_batch_norm_goes_into_the_convolution_before_it(kind: str) -> None:
    layer: Any = BEHIND[kind]()
    model = _sequence(conv=layer, norm=nn.BatchNorm2d(layer.out_channels), act=nn.ReLU())
    assert _folded(model) == {"norm": "after conv"}


AHEAD: dict[str, Callable[[], nn.Module]] = {
    "no padding": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "valid": lambda: nn.Conv2d(4, 6, 3, padding="valid"),
    "same, of one position": lambda: nn.Conv2d(4, 6, 1, padding="same"),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "reflected": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "around": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "transposed of one position": lambda: nn.ConvTranspose2d(4, 6, 1, groups=2),
}


@pytest.mark.parametrize("kind", AHEAD)
def test_a_batch_norm_goes_into_the_convolution_behind_it(kind: str) -> None:
    model = _sequence(act=nn.ReLU(), norm=nn.BatchNorm2d(4), conv=AHEAD[kind]())
    assert _folded(model) == {"norm": "before conv"}


PADDED: dict[str, Callable[[], nn.Module]] = {
    "zeros": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
}


@pytest.mark.parametrize("kind", PADDED)
def test_a_shift_does_not_pass_through_zeros_but_a_scale_does(kind: str) -> None:
    model = _sequence(act=nn.ReLU(), norm=nn.BatchNorm2d(4), conv=PADDED[kind]())
    assert "'conv' pads with zeros" in _stays(model)
    model = _sequence(
        act=nn.ReLU(), norm=create_norm("batch", 4, layout="2d", bias=False), conv=PADDED[kind]()
    )
    folding = fold_batchnorm_(model.eval(), IMAGES)  # no statistics yet: a scale of 1/√(1+ε)
    assert folding.folded == (Folded("norm", ("conv",), "before"),)


def test_a_convolution_that_pads_by_its_own_forward_takes_no_shift() -> None:
    import timm

    same = timm.layers.Conv2dSame(4, 6, 3, stride=2)
    model = _sequence(act=nn.ReLU(), norm=nn.BatchNorm2d(4), conv=same)
    assert "'conv' pads with zeros" in _stays(model)
    behind = _sequence(conv=timm.layers.Conv2dSame(4, 6, 3, stride=2), norm=nn.BatchNorm2d(6))
    assert _folded(behind) == {"norm": "after conv"}


def test_the_weights_are_those_of_the_formula() -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6, eps=0.1)))
    conv, norm = model.conv, model.norm
    factor = norm.weight / (norm.running_var + 0.1).sqrt()
    weight = conv.weight * factor[:, None, None, None]
    bias = (conv.bias - norm.running_mean) * factor + norm.bias
    folded, folding = fold_batchnorm(model, IMAGES)
    torch.testing.assert_close(folded.conv.weight, weight)
    torch.testing.assert_close(folded.conv.bias, bias)
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(model.norm, nn.BatchNorm2d)
    statistics = folding.statistics["conv"]
    ratio = norm.running_var / (norm.running_var + 0.1)
    torch.testing.assert_close(statistics.mean[0], norm.bias.double())
    torch.testing.assert_close(statistics.var[0], (norm.weight.square() * ratio).double())


def test_statistics_are_those_of_what_the_folded_layer_gives() -> None:
    """Where the running moments are those of these very inputs."""
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6, momentum=1.0)))
    model.train()(IMAGES)
    model.eval()
    model.norm.running_var *= (2 * 36 - 1) / (2 * 36)  # torch keeps the unbiased one
    folding = fold_batchnorm_(model, IMAGES)
    given = model.conv(IMAGES).double()
    torch.testing.assert_close(folding.statistics["conv"].mean[0], given.mean((0, 2, 3)))
    var = given.var((0, 2, 3), correction=0)
    torch.testing.assert_close(folding.statistics["conv"].var[0], var)
    folding()
    assert folding.statistics == {}


def test_a_negative_and_a_zero_scale_and_a_missing_affine() -> None:
    model = _sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6), act=nn.ReLU())
    assert _folded(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6, affine=False)))
    _shaken(model)
    model.norm.weight.data[:2] = torch.tensor([0.0, -1.5])
    wanted = model(IMAGES)
    folding = fold_batchnorm_(model, IMAGES)
    assert not folding.left
    assert not bool(model.conv.weight[0].any())
    torch.testing.assert_close(model(IMAGES), wanted)


def test_tokens_behind_a_linear_layer() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return F.relu(self.norm(y.flatten(0, 1)).reshape_as(y))

    model = Wired(forward, linear=nn.Linear(4, 6, bias=False), norm=nn.BatchNorm1d(6))
    assert _folded(model, torch.randn(2, 5, 4)) == {"norm": "after linear"}


def test_through_a_transpose_into_a_norm_of_tokens_of_ours() -> None:
    norm = create_norm("batch", 6, layout="tokens", act=nn.GELU)
    model = Wired(
        lambda self, x: self.norm(self.conv(x).flatten(2).transpose(1, 2)),
        conv=nn.Conv2d(4, 6, 3),
        norm=norm,
    )
    assert _folded(model) == {"norm": "after conv"}


def test_into_a_classifier_through_pooling_and_flattening() -> None:
    for pool, inputs in ((nn.AdaptiveAvgPool2d(1), 4), (nn.AvgPool2d(2), 64), (nn.Identity(), 256)):
        head = {"pool": pool, "flatten": nn.Flatten(), "linear": nn.Linear(inputs, 3)}
        model = _sequence(act=nn.ReLU(), norm=nn.BatchNorm2d(4), **head)
        assert _folded(model) == {"norm": "before linear"}


def test_not_through_pooling_that_pads_or_takes_the_largest() -> None:
    for pool, said in ((nn.AvgPool2d(3, 1, 1), "pads them"), (nn.MaxPool2d(2), "max_pool2d")):
        model = _sequence(act=nn.ReLU(), norm=nn.BatchNorm2d(4), pool=pool, conv=nn.Conv2d(4, 6, 1))
        assert said in _stays(model)


def test_into_every_convolution_that_reads_it() -> None:
    model = Wired(
        lambda self, x: self.one(y := self.norm(x.relu())) + self.two(y[:, :, 1:-1, 1:-1]),
        norm=nn.BatchNorm2d(4),
        one=nn.Conv2d(4, 6, 3),
        two=nn.Conv2d(4, 6, 1),
    )
    assert _folded(model) == {"norm": "before one, two"}


def test_out_of_convolutions_that_are_joined_and_shuffled() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.two(x)], 1)
        y = y.unflatten(1, (2, 6)).transpose(1, 2).flatten(1, 2)
        return F.relu(self.norm(y))

    layers = {"one": nn.Conv2d(4, 7, 3), "two": nn.Conv2d(4, 5, 3, bias=False)}
    assert _folded(Wired(forward, norm=nn.BatchNorm2d(12), **layers)) == {"norm": "after one, two"}


def test_a_part_of_a_split_changes_alone() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        one, two = self.conv(x).split([2, 4], 1)
        return torch.cat([one, F.relu(self.norm(two))], 1)

    model = Wired(forward, conv=nn.Conv2d(4, 6, 3, bias=False), norm=nn.BatchNorm2d(4))
    assert _folded(model) == {"norm": "after conv"}
    assert fold_batchnorm_(model.float(), IMAGES).statistics == {}


def test_two_norms_behind_each_other() -> None:
    layers = {"conv": nn.Conv2d(4, 6, 3), "one": nn.BatchNorm2d(6), "two": nn.BatchNorm2d(6)}
    assert _folded(_sequence(**layers)) == {"one": "after conv", "two": "after conv"}


def test_one_convolution_takes_a_norm_from_both_sides() -> None:
    layers = {"act": nn.ReLU(), "one": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 6, 3)}
    where = _folded(_sequence(**layers, two=nn.BatchNorm2d(6)))
    assert where == {"one": "before conv", "two": "after conv"}


def test_a_pair_that_runs_twice() -> None:
    model = Wired(
        lambda self, x: self.norm(self.conv(self.norm(self.conv(x)).relu())),
        conv=nn.Conv2d(4, 4, 3),
        norm=nn.BatchNorm2d(4),
    )
    assert _folded(model) == {"norm": "after conv"}


def test_timms_layers_keep_activation_and_dropout() -> None:
    import timm

    norm = timm.layers.BatchNormAct2d(6, act_layer=nn.PReLU, drop_layer=nn.Dropout)
    model = _sequence(conv=nn.Conv2d(4, 6, 3), norm=norm)
    assert _folded(model) == {"norm": "after conv"}
    fold_batchnorm_(model.float(), IMAGES)
    assert [type(each) for each in model.norm] == [nn.Dropout, nn.PReLU]
    model = _sequence(conv=nn.Conv2d(4, 6, 3), norm=timm.layers.BatchNormAct2d(6))
    fold_batchnorm_(_shaken(model), IMAGES)
    assert isinstance(model.norm, nn.ReLU)


def test_every_class_of_batch_norm() -> None:
    import timm
    import torchvision

    makers: list[Callable[[], nn.Module]] = [
        lambda: torchvision.ops.FrozenBatchNorm2d(6),
        lambda: timm.layers.FrozenBatchNormAct2d(6),
        lambda: timm.layers.SplitBatchNorm2d(6),
        lambda: nn.SyncBatchNorm(6),
        lambda: create_norm("ghost", 6, layout="2d"),
        lambda: create_norm("streaming", 6, layout="2d", act=nn.SiLU),
    ]
    for make in makers:
        assert _folded(_sequence(conv=nn.Conv2d(4, 6, 3), norm=make())) == {"norm": "after conv"}
    model = _sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6))
    freeze_norm_(model)
    assert _folded(model) == {"norm": "after conv"}


WHITENING = ("zca", "cholesky", "iternorm", "coloring")


@pytest.mark.parametrize("name", WHITENING)
def test_whitening_goes_into_a_convolution_or_becomes_one(name: str) -> None:
    def norm(width: int) -> nn.Module:
        torch.manual_seed(0)
        return create_norm(name, width, layout="2d", group_size=2)

    assert _folded(_sequence(conv=nn.Conv2d(4, 6, 3), norm=norm(6))) == {"norm": "after conv"}
    model = _sequence(act=nn.ReLU(), norm=norm(4), conv=nn.Conv2d(4, 6, 3))
    assert _folded(model) == {"norm": "before conv"}
    model = _sequence(conv=nn.Conv2d(4, 4, 3, groups=4), norm=norm(4))
    assert _folded(model) == {"norm": "alone norm"}
    fold_batchnorm_(model.float(), IMAGES)
    assert isinstance(model.norm, nn.Conv2d)


def test_whitening_within_the_groups_of_a_convolution() -> None:
    norm = create_norm("zca", 6, layout="2d", group_size=3)
    for layer in (nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2)):
        assert _folded(_sequence(conv=layer, norm=norm)) == {"norm": "after conv"}


def test_whitened_outputs_have_the_statistics_of_the_recovery() -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=create_norm("zca", 6, layout="2d")))
    model.norm.eps = 1e-12
    statistics = fold_batchnorm(model.double(), IMAGES.double())[1].statistics["conv"]
    torch.testing.assert_close(statistics.mean[0], model.norm.bias)
    torch.testing.assert_close(statistics.var[0], model.norm.weight.square())


def test_layers_of_ours_that_are_no_fixed_map_stay() -> None:
    for name in ("switchable", "bin", "ibn"):
        norm = create_norm(name, 6, layout="2d")
        assert "measures each input" in _stays(_sequence(conv=nn.Conv2d(4, 6, 3), norm=norm))
    plain = _sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6))
    domains = DomainModel(_shaken(plain), 2)
    folding = fold_batchnorm_(domains, (IMAGES, 0))
    assert folding.folded == ()
    assert folding.left[0][0] == "model.norm"
    assert "DomainModel.export(domain)" in folding.left[0][1]
    assert len(fold_batchnorm_(domains.export(1), IMAGES).folded) == 1


class _Louder(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Louder2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _overwritten(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.conv(x)
    y.view(2, -1).relu_()
    z: Tensor = self.norm(y)
    return z


def _tied() -> nn.Module:
    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "other": nn.Conv2d(4, 4, 1)}
    model = _sequence(**layers)
    model.other.weight = model.conv.weight
    return model


STAYS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "cat": (
        lambda: Wired(
            lambda self, x: self.norm(torch.cat([self.conv(x), x], 1)).relu(),
            conv=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(10),
        ),
        "an input of the network",
    ),
    "an activation": (
        lambda: _sequence(conv=nn.Conv2d(4, 6, 1), act=nn.ReLU(), norm=nn.BatchNorm2d(6)),
        "aten.relu of 'act' gives; gives an output of the network",
    ),
    "another reader": (
        lambda: Wired(
            lambda self, x: self.norm(y := self.conv(x)) + y,
            conv=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(6),
        ),
        "reads what aten.add reads, too; aten.add reads what it gives",
    ),
    "a reader of a view": (
        lambda: Wired(
            lambda self, x: self.norm(y := self.conv(x)).flatten(2) + y.flatten(2),
            conv=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(6),
        ),
        "aten.view reads, too",
    ),
    "written over through a view": (
        lambda: Wired(_overwritten, conv=nn.Conv2d(4, 6, 1), norm=nn.BatchNorm2d(6)),
        "aten.relu",
    ),
    "an output": (
        lambda: Wired(
            lambda self, x: torch.cat([self.norm(y := self.conv(x)), y], 1),
            conv=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(6),
        ),
        "aten.cat reads, too",
    ),
    "shared convolution": (
        lambda: Wired(
            lambda self, x: self.norm(self.conv(x)) + self.other(self.conv(x)),
            conv=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(6),
            other=nn.BatchNorm2d(6),
        ),
        "'conv' runs 2 times, and it 1",
    ),
    "shared norm": (
        lambda: Wired(
            lambda self, x: self.norm(self.one(x)) + self.norm(self.two(x)),
            one=nn.Conv2d(4, 6, 1),
            two=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(6),
        ),
        "runs several times",
    ),
    "shared weight": (_tied, "shares its weight"),
    "weight used elsewhere": (
        lambda: Wired(
            lambda self, x: self.norm(self.conv(x)) * self.conv.weight.mean(),
            conv=nn.Conv2d(4, 6, 1),
            norm=nn.BatchNorm2d(6),
        ),
        "computes its weight",
    ),
    "parametrized": (
        lambda: _sequence(
            conv=parametrizations.weight_norm(nn.Conv2d(4, 6, 1)), norm=nn.BatchNorm2d(6)
        ),
        "is parametrized",
    ),
    "spectral norm": (
        lambda: _sequence(conv=spectral_norm(nn.Conv2d(4, 6, 1)), norm=nn.BatchNorm2d(6)),
        "computes its weight",
    ),
    "batch statistics": (
        lambda: _sequence(
            conv=nn.Conv2d(4, 6, 1), norm=nn.BatchNorm2d(6, track_running_stats=False)
        ),
        "keeps no statistics",
    ),
    "a class of somebody's": (
        lambda: _sequence(conv=nn.Conv2d(4, 6, 1), norm=_Louder(6)),
        "is not known here",
    ),
    "never run": (
        lambda: Wired(lambda self, x: x * 1, norm=nn.BatchNorm2d(6)),
        "does not run on these inputs",
    ),
    "a convolution and more": (
        lambda: _sequence(conv=_Louder2d(4, 6, 1), norm=nn.BatchNorm2d(6)),
        "is more than a convolution (_Louder2d)",
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_cannot_be_folded_is_named_with_its_reason(case: str) -> None:
    make, said = STAYS[case]
    assert said in _stays(make())


def test_standardized_weights_are_named() -> None:
    import timm

    model = _sequence(conv=timm.layers.StdConv2d(4, 6, 3), norm=nn.BatchNorm2d(6))
    assert "'conv' computes its weight (StdConv2d)" in _stays(model)


def test_a_branch_without_convolution_says_what_to_call() -> None:
    import timm

    torch.manual_seed(0)
    block = timm.models.byobnet.RepVggBlock(4, 4)
    model = _sequence(block=block)
    reason = _stays(model, norm="block.identity")
    assert reason.endswith("block.reparameterize() folds its block's branches into one, "
                           "called before this")  # fmt: skip


def test_guilty_norms_are_found_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that goes wrong for one layer of eight is taken back for this one alone."""
    layers: dict[str, nn.Module] = {}
    for index in range(8):
        layers |= {f"conv{index}": nn.Conv2d(4, 4, 3, padding=1), f"norm{index}": nn.BatchNorm2d(4)}
        layers[f"act{index}"] = nn.LeakyReLU(0.3)
    model = _shaken(_sequence(**layers))
    bad, honest = model.conv5, fold_plan.change_outputs_

    def change(layer: Any, affine: Any, undo: Any) -> None:
        honest(layer, affine, undo)
        if layer is bad:
            layer.bias.data += 0.1

    monkeypatch.setattr(fold_plan, "change_outputs_", change)
    wanted = model(IMAGES)
    folding = fold_batchnorm_(model, IMAGES)
    assert [name for name, _ in folding.left] == ["norm5"]
    assert "the output differs by" in folding.left[0][1]
    assert len(folding.folded) == 7
    assert folding.difference < 1e-5
    assert "conv5" not in folding.statistics
    torch.testing.assert_close(model(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    folding()
    assert torch.equal(model(IMAGES), wanted)


def test_a_norm_that_its_network_asks_for_stays() -> None:
    model = Wired(
        lambda self, x: self.norm(self.conv(x)) * self.norm.eps,
        conv=nn.Conv2d(4, 6, 1),
        norm=nn.BatchNorm2d(6),
    )
    assert "it raises AttributeError" in _stays(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_its_own_precision_and_place(dtype: torch.dtype) -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3, bias=False), norm=nn.BatchNorm2d(6)))
    model.conv.weight.requires_grad_(False)
    model = model.to(dtype, memory_format=torch.channels_last).train()
    folding = fold_batchnorm_(model, IMAGES.to(dtype))
    assert len(folding.folded) == 1
    assert folding.difference < {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    assert model.conv.bias.dtype == dtype
    assert not model.conv.bias.requires_grad
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.training
    assert model.norm.training
    folding()
    assert model.conv.bias is None


def test_hooks_of_a_norm_go_on() -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    seen: list[Tensor] = []
    model.norm.register_forward_hook(lambda module, args, out: seen.append(out))
    wanted = model(IMAGES)
    with fold_batchnorm_(model, IMAGES):
        seen.clear()
        torch.testing.assert_close(model(IMAGES), wanted)
        torch.testing.assert_close(seen[0], wanted)


def test_without_proof() -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    folding = fold_batchnorm_(model, IMAGES, verify=False)
    assert len(folding.folded) == 1
    assert folding.difference != folding.difference


def test_a_network_of_our_batch_norms_folds_alike() -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    theirs, _ = fold_batchnorm(model, IMAGES)
    convert_norm_(model, "batch")
    ours, _ = fold_batchnorm(model, IMAGES)
    assert torch.equal(ours.conv.weight, theirs.conv.weight)
    assert torch.equal(ours.conv.bias, theirs.conv.bias)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_run_or_compared_is_refused() -> None:
    model = _shaken(_sequence(conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)))
    with pytest.raises(InputError, match="does not run on an input of shape"):
        fold_batchnorm_(model, IMAGES[:, :3], verify=False)
    with pytest.raises(InputError, match="fold its `module`"):
        fold_batchnorm_(nn.DataParallel(model), IMAGES)
    with pytest.raises(InputError, match="TorchScript"):
        fold_batchnorm_(torch.jit.trace(model, IMAGES), IMAGES)
    noisy = Wired(lambda self, x: self.inner(x) + torch.randn(()), inner=model)
    with pytest.raises(InputError, match="cannot be verified"):
        fold_batchnorm_(noisy, IMAGES)
    assert fold_batchnorm_(nn.ReLU(), IMAGES).folded == ()
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert isinstance(fold_batchnorm_(model, IMAGES), Folding)


def _pads_odd(w: Any, x: Tensor) -> Tensor:
    x = w.norm(x)
    return w.conv(F.pad(x, (0, 1, 0, 1)) if x.shape[-1] % 2 else x)  # type: ignore[no-any-return]


def _asks_for_the_batch(w: Any, x: Tensor) -> Tensor:
    x = w.conv(x)
    return w.norm(x) if len(x) == 2 else w.other(x)  # type: ignore[no-any-return]


def _asks_for_the_size(w: Any, x: Tensor) -> Tensor:
    x = w.conv(x)
    return w.norm(x) if x.shape[-1] % 2 == 0 else w.other(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [_pads_odd, _asks_for_the_batch, _asks_for_the_size])
def test_what_holds_for_the_given_size_only_is_not_folded(forward: Callable[..., Any]) -> None:
    def made() -> Wired:
        layers = {name: nn.BatchNorm2d(4) for name in ("norm", "other")}
        conv = _sequence(first=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
        return Wired(
            lambda w, x: w.last(forward(w, x)), conv=nn.Conv2d(4, 4, 3), last=conv, **layers
        )

    model = _shaken(made()).double().eval()
    folded, folding = fold_batchnorm(model, IMAGES.double())
    assert [each.norm for each in folding.folded] == ["last.norm"]
    assert "on inputs of (" in dict(folding.left)["norm"]
    for shape in ((2, 4, 8, 8), (1, 4, 8, 8), (2, 4, 9, 9), (1, 4, 11, 11)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_norm_of_averages_does_not_tell_how_its_layer_varies() -> None:
    model = _sequence(conv=nn.Conv2d(4, 4, 3), pool=nn.AvgPool2d(2), norm=nn.BatchNorm2d(4))
    folding = fold_batchnorm_(_shaken(model).double(), IMAGES.double())
    assert folding.folded[0].into == ("conv",)
    assert not folding.statistics


def test_every_module_keeps_its_own_mode() -> None:
    import timm

    norm = timm.layers.BatchNormAct2d(4)
    model = _sequence(conv=nn.Conv2d(4, 4, 3), norm=norm, last=nn.ReLU()).train()
    norm.act.eval()
    norm.drop.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    folding = fold_batchnorm_(model, IMAGES)
    assert not model.get_submodule("norm").training
    folding()
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_what_has_no_weights_or_no_numbers_or_cannot_be_written() -> None:
    pair = _sequence(conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    with pytest.raises(InputError, match="does not run on an input of shape none"):
        fold_batchnorm_(pair, ())
    with pytest.raises(InputError, match=r"does not run on an input of shape \(1, 3, 8, 8\)"):
        fold_batchnorm_(pair, torch.zeros(1, 3, 8, 8))
    assert fold_batchnorm_(pair, IMAGES[:0]).left[0][1].startswith("runs on no numbers")
    with pytest.raises(InputError, match="'0' has no weights yet; run the model once"):
        fold_batchnorm_(nn.Sequential(nn.LazyConv2d(4, 3)), IMAGES)
    with torch.inference_mode():
        made = _sequence(conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))
    with pytest.raises(InputError, match="that fold_batchnorm returns"):
        fold_batchnorm_(made, IMAGES)
    assert len(fold_batchnorm(made, IMAGES)[1].folded) == 1


def test_within_inference_mode() -> None:
    model = _sequence(conv=nn.Conv2d(4, 4, 3, bias=False), norm=nn.BatchNorm2d(4))
    with torch.inference_mode():
        folding = fold_batchnorm_(_shaken(model), IMAGES * 2)
    assert folding.folded == (Folded("norm", ("conv",), "after"),)
    assert not any(each.is_inference() for each in model.parameters())
