"""The layer of every test-time method, each rule against its formula in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from normapps.errors import InputError
from normapps.norm import convert_norm, create_norm
from normapps.norm.layers.base import NormLayer
from normapps.norm.layers.streaming import RULES, StreamingNorm2d

C, PRIOR, MOMENTUM, EPS = 3, 5.0, 0.2, 1e-3
every_rule = pytest.mark.parametrize("rule", RULES)
MIXING = ("prior", "ema", "cumulative")


def _layer(rule: str, layout: str = "2d", **options: Any) -> Any:
    layer = create_norm(
        "streaming",
        C,
        layout=layout,
        rule=rule,
        **{"prior": PRIOR, "momentum": MOMENTUM, "eps": EPS, **options},
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
            tensor.copy_(torch.rand(C, generator=generator) + 0.5)
    return layer


def _batches(sizes: tuple[int, ...] = (4, 2, 5)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, C, 3, 2, generator=generator) * (i + 1) + i for i, n in enumerate(sizes)]


class Reference:
    """The formulas, in float64, all that was seen kept as values."""

    def __init__(self, layer: Any, rule: str) -> None:
        self.rule = rule
        self.mean, self.var = layer.running_mean.double(), layer.running_var.double()
        self.weight, self.bias = layer.weight.detach().double(), layer.bias.detach().double()
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize (N, C, *S) in float64."""
        rows = x.movedim(1, 0).flatten(1)
        mean, var = rows.mean(1), rows.var(1, correction=0)
        if self.rule == "source":
            mean, var = self.mean, self.var
        if self.rule == "prior":
            mean, var = self.mixed(rows, len(x))
        if self.rule == "ema":
            mean = (1 - MOMENTUM) * self.mean + MOMENTUM * mean
            var = (1 - MOMENTUM) * self.var + MOMENTUM * var
            self.mean, self.var = mean.detach(), var.detach()
        if self.rule == "cumulative":
            earlier = [each.movedim(1, 0).flatten(1) for each in self.seen]
            mean, var = self.mixed(torch.cat([*earlier, rows], 1), len(x) + self.samples)
        self.seen.append(x.detach())
        shape = (1, C, *[1] * (x.dim() - 2))
        standard = (x - mean.view(shape)) / (var.view(shape) + EPS).sqrt()
        return standard * self.weight.view(shape) + self.bias.view(shape)

    def mixed(self, rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """N/(N+n)·source + n/(N+n)·target."""
        mean = (PRIOR * self.mean + n * rows.mean(1)) / (PRIOR + n)
        return mean, (PRIOR * self.var + n * rows.var(1, correction=1)) / (PRIOR + n)

    @property
    def samples(self) -> int:
        """How many inputs have come."""
        return sum(map(len, self.seen))


@every_rule
@pytest.mark.parametrize("gradient", [True, False])
def test_rules_are_their_formulas_with_gradients(rule: str, gradient: bool) -> None:
    layer = _layer(rule)
    reference = Reference(layer, rule)
    for x in _batches():
        given, exact = x.clone().requires_grad_(gradient), x.double().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            y, expected = layer(given), reference(exact)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        if gradient:
            slope = torch.linspace(-1, 1, y.numel()).view(y.shape).square()
            y.backward(slope)
            expected.backward(slope.double())
            torch.testing.assert_close(given.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_mean.double(), reference.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), reference.var, rtol=1e-5, atol=1e-6)


@every_rule
def test_gradients_of_scale_and_shift(rule: str) -> None:
    layer, x = _layer(rule).double(), _batches()[0].double()
    names = ("weight", "bias")

    def forward(*values: Tensor) -> Tensor:
        buffers = {name: each.clone() for name, each in layer.named_buffers()}
        state = dict(zip(names, values, strict=True)) | buffers
        y: Tensor = torch.func.functional_call(layer, state, (x,))
        return y

    values = [getattr(layer, name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(forward, values)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "ema"])
def test_the_source_stays_until_it_is_settled(rule: str) -> None:
    layer = _layer(rule)
    before, reference = copy.deepcopy(layer.state_dict()), Reference(layer, rule)
    batches = _batches()
    for x in batches:
        layer(x)
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())
    layer.settle_()
    rows = torch.cat([x.double().movedim(1, 0).flatten(1) for x in batches], 1)
    expected = reference.mixed(rows, 11)
    if rule == "batch":
        expected = rows.mean(1), rows.var(1)
    if rule == "source":
        expected = reference.mean, reference.var
    torch.testing.assert_close(layer.running_mean.double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), expected[1], rtol=1e-5, atol=1e-6)
    settled = copy.deepcopy(layer.state_dict())
    layer.settle_()  # nothing has come since
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in settled.items())


def test_ema_settles_as_it_is() -> None:
    layer = _layer("ema")
    layer(_batches()[0])
    before = copy.deepcopy(layer.state_dict())
    layer.settle_()
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())
    assert layer.num_batches_tracked == 1


def test_ema_without_momentum_averages_all_batches() -> None:
    layer, batches = _layer("ema", momentum=None), _batches()
    for x in batches:
        layer(x)
    means = torch.stack([x.mean((0, 2, 3)) for x in batches])
    torch.testing.assert_close(layer.running_mean, means.mean(0))


@pytest.mark.parametrize("rule", ["batch", "prior"])
def test_what_is_seen_is_the_stream(rule: str) -> None:
    """Means a thousand deviations from 0, batches of all sizes: no digits are lost."""
    layer = _layer(rule)
    batches = [x + 1000 for x in _batches((4, 1, 7, 3, 20))]
    for x in batches:
        layer(x)
    rows = torch.cat([x.double().movedim(1, 0).flatten(1) for x in batches], 1)
    torch.testing.assert_close(layer.seen_mean.double(), rows.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        layer.seen_var.double(), rows.var(1, correction=0), rtol=1e-3, atol=0
    )
    assert (int(layer.seen_count), int(layer.seen_samples)) == (35 * 6, 35)


def test_batch_is_torchs_kernel_to_the_bit() -> None:
    layer, theirs, x = _layer("batch"), nn.BatchNorm2d(C, EPS), _batches()[0]
    theirs.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), theirs(x))
    none, x = _layer("prior", prior=0.0), _batches()[1]
    assert torch.equal(none(x), theirs(x))


def test_source_is_inference_to_the_bit() -> None:
    layer, theirs, x = _layer("source"), nn.BatchNorm2d(C, EPS), _batches()[0]
    theirs.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), theirs.eval()(x))
    assert torch.equal(_layer("cumulative").eval()(x), theirs(x))


@pytest.mark.parametrize("rule", MIXING)
def test_tokens_are_the_same_channels_elsewhere(rule: str) -> None:
    one, other = _layer(rule), _layer(rule, "tokens")
    for x in _batches():
        found = other(x.flatten(2).transpose(1, 2))
        torch.testing.assert_close(found.transpose(1, 2), one(x).flatten(2))
    torch.testing.assert_close(other.seen_var, one.seen_var)
    assert torch.equal(other.seen_samples, one.seen_samples)


@pytest.mark.parametrize("rule", ["prior", "cumulative"])
def test_the_number_of_inputs_can_be_told(rule: str) -> None:
    """A stack of linear layers sees N·L rows of N pictures."""
    x = _batches()[0]
    expected, folded = _layer(rule), _layer(rule, "1d")
    folded.batch_samples = len(x)
    rows = x.movedim(1, -1).reshape(-1, C)
    found = folded(rows).reshape(4, 3, 2, C).movedim(-1, 1)
    torch.testing.assert_close(found, expected(x))


@every_rule
def test_what_does_not_follow_is_not_counted(rule: str) -> None:
    layer, batches = _layer(rule), _batches()
    layer(batches[0])
    before = copy.deepcopy([layer.state_dict(), layer.stream_state()])
    layer.follows = False
    layer(batches[1])
    for mine, old in zip([layer.state_dict(), layer.stream_state()], before, strict=True):
        assert all(torch.equal(mine[key], value) for key, value in old.items())


@pytest.mark.parametrize("rule", ["batch", "prior"])
def test_a_batch_shown_once_more_is_normalized_all_the_same(rule: str) -> None:
    layer, x = _layer(rule), _batches()[0]
    y = layer(x)
    layer.follows = False
    assert torch.equal(layer(x), y)


@every_rule
def test_the_stream_goes_on_where_it_was(rule: str) -> None:
    layer, batches = _layer(rule), _batches((4, 2, 5, 3))
    for x in batches[:2]:
        layer(x)
    fresh = _layer(rule)
    fresh.load_state_dict(layer.state_dict())
    fresh.load_stream_state(copy.deepcopy(layer.stream_state()))
    for x in batches[2:]:
        assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("rule", MIXING)
def test_one_value_has_no_variance(rule: str) -> None:
    layer = _layer(rule)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    share = MOMENTUM if rule == "ema" else 1 / (1 + PRIOR)
    x = torch.randn(1, C, 1, 1, requires_grad=True)
    y = layer(x)
    mixed = torch.lerp(mean, x.flatten(), share)
    expected = (x.flatten() - mixed) / (var + EPS).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(y.flatten(), expected)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    layer.settle_()
    torch.testing.assert_close(layer.running_mean, mixed.detach())
    torch.testing.assert_close(layer.running_var, var)


def test_one_value_alone_is_refused_and_changes_nothing() -> None:
    for layer in (_layer("batch"), _layer("prior", prior=0.0)):
        with pytest.raises(InputError, match=r"1 sample\(s\) a channel, needs 2; .*prior above 0"):
            layer(torch.randn(1, C, 1, 1))
        assert int(layer.seen_samples) == 0
        assert layer(torch.randn(2, C, 1, 1)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_rule
def test_a_half_network_remembers_in_float32(rule: str, dtype: torch.dtype) -> None:
    layer, exact = _layer(rule).to(dtype), _layer(rule).double()
    for each in range(40):
        x = (torch.randn(16, C, 4, 4, generator=torch.Generator().manual_seed(each)) + 3).to(dtype)
        y, expected = layer(x), exact(x.double())
    assert y.dtype == dtype
    assert (y.double() - expected).abs().max() < 0.06 * expected.abs().max()
    assert {layer.seen_mean.dtype, layer.seen_var.dtype} == {torch.float32}
    if rule in ("batch", "prior", "cumulative"):
        torch.testing.assert_close(layer.seen_mean.double(), exact.seen_mean, rtol=1e-4, atol=0)
        torch.testing.assert_close(layer.seen_var.double(), exact.seen_var, rtol=1e-3, atol=0)
        assert int(layer.seen_samples) == 640  # more than bfloat16 can count by ones
        assert int(layer.seen_count) == 10240


@every_rule
def test_under_autocast(rule: str) -> None:
    layer, exact = _layer(rule), _layer(rule).double()
    for x in _batches():
        half = x.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(half)
        expected = exact(half.double())
        assert y.dtype == torch.bfloat16
        assert (y.double() - expected).abs().max() < 0.02 * expected.abs().max()
    torch.testing.assert_close(layer.seen_mean.double(), exact.seen_mean, rtol=1e-5, atol=1e-6)


def test_a_cast_keeps_what_was_seen() -> None:
    layer, x = _layer("batch"), _batches()[0] + 1000
    layer(x)
    seen = layer.seen_mean.clone()
    assert torch.equal(layer.half().seen_mean, seen)
    assert torch.equal(layer.float().seen_mean, seen)
    assert layer.double().seen_mean.dtype == torch.float64
    assert layer.to("meta").seen_mean.is_meta


@every_rule
def test_compiles_without_a_break(rule: str) -> None:
    expected, layer = _layer(rule), _layer(rule)
    torch._dynamo.reset()
    compiled: Callable[[Tensor], Tensor] = torch.compile(layer, fullgraph=True, backend="eager")
    for x in _batches((4, 4)):
        given, reference = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, wanted = compiled(given), expected(reference)
        torch.testing.assert_close(y, wanted)
        y.square().sum().backward()
        wanted.square().sum().backward()
        torch.testing.assert_close(given.grad, reference.grad)
    for mine, theirs in zip(layer.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_without_running_statistics_the_batch_is_all_there_is() -> None:
    layer = create_norm("streaming", C, layout="2d", track_running_stats=False)
    x = _batches()[0]
    expected = nn.BatchNorm2d(C, track_running_stats=False)(x)
    assert torch.equal(layer(x), expected)
    assert int(layer.seen_samples) == 4
    assert torch.equal(layer.eval()(x), expected)
    assert int(layer.seen_samples) == 4
    layer.settle_()
    assert layer.running_mean is None


def test_it_takes_a_batch_norms_place_and_gives_it_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), nn.ReLU())
    made = convert_norm(model, "streaming", rule="prior", prior=7.0)
    assert isinstance(made[1], StreamingNorm2d)  # type: ignore[index]
    assert list(made.state_dict()) == list(model.state_dict())
    back = convert_norm(convert_norm(made, "batch"), "torch")
    assert type(back[1]) is nn.BatchNorm2d  # type: ignore[index]
    back.load_state_dict(model.state_dict())


def test_options_that_are_none() -> None:
    for options, message in (
        ({"rule": "bacth"}, "unknown rule 'bacth'; did you mean 'batch'"),
        ({"prior": -1.0}, "prior -1.0: give a number of samples"),
        ({"rule": "ema", "track_running_stats": False}, "needs running statistics"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            create_norm("streaming", C, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


PARTS = ((3, 5), (7, 1), (8, 0))
"""Samples of two processes, a batch after the other."""


def _sync_batches() -> list[Tensor]:
    return _batches((8, 8, 8))


def _train(layer: NormLayer, x: Tensor, slope: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(slope)
    assert x.grad is not None
    return [y.detach(), x.grad]


def _slope(x: Tensor) -> Tensor:
    return torch.linspace(-1, 1, x.numel()).reshape(x.shape).square()


def _in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for rule in RULES:
        layer = _layer(rule, sync=True)
        found[rule] = [
            _train(layer, x.split(parts)[rank], _slope(x).split(parts)[rank])
            for x, parts in zip(_sync_batches(), PARTS, strict=True)
        ]
        found[f"{rule} state"] = layer.state_dict() | layer.stream_state()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_one_on_the_joined_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(_in_process, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rule in RULES:
        layer = _layer(rule)
        for index, x in enumerate(_sync_batches()):
            expected = _train(layer, x, _slope(x))
            for which, value in enumerate(expected):
                joined = torch.cat([each[rule][index][which] for each in both])
                torch.testing.assert_close(joined, value, rtol=1e-4, atol=1e-5)
        for key, value in (layer.state_dict() | layer.stream_state()).items():
            for each in both:
                torch.testing.assert_close(each[f"{rule} state"][key], value)


def test_streams_of_float64_layers_are_merged_in_float64() -> None:
    layer: Any = create_norm("streaming", 3, rule="prior", dtype=torch.float64).train()
    xs = [torch.randn(n, 3, 5, dtype=torch.float64) * n + 7 for n in (4, 9, 2)]
    for x in xs:
        layer(x)
    rows = torch.cat([x.movedim(1, 0).flatten(1) for x in xs], 1)
    torch.testing.assert_close(layer.seen_mean, rows.mean(1), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(layer.seen_var, rows.var(1, correction=0), rtol=1e-13, atol=1e-13)
