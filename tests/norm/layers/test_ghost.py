"""Ghost batch norm: each chunk is a batch of its own, the population is that of the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import Moments
from normapps.norm.layers import ghost
from normapps.norm.layers.ghost import GhostBatchNorm
from normapps.norm.registry import create_norm

TORCH = {"1d": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
SHAPES = {"1d": (6, 3, 7), "2d": (6, 3, 5, 4), "3d": (6, 3, 2, 3, 4), "tokens": (6, 5, 3)}


def _batches(shape: tuple[int, ...], count: int = 4) -> list[Tensor]:
    """Batches whose samples drift, so that chunks are unlike each other."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.arange(shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [each * (i + 1) + drift * i for i, each in enumerate(noise)]


def _reference(x: Tensor, chunks: int, eps: float = 1e-5) -> Tensor:
    """(N, C, *S) by the formula."""
    parts = x.unflatten(0, (chunks, -1))
    axes = [axis for axis in range(1, parts.dim()) if axis != 2]
    centred = parts - parts.mean(axes, keepdim=True)
    var = centred.square().mean(axes, keepdim=True)
    return (centred / (var + eps).sqrt()).flatten(0, 1)


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_chunks_by_themselves_and_the_population_of_all(
    layout: str, momentum: float | None
) -> None:
    options = {"eps": 1e-3, "momentum": momentum}
    layer = create_norm("ghost", 3, layout=layout, num_splits=3, **options).double()
    plain = nn.BatchNorm1d(3, **options).double()
    assert list(layer.state_dict()) == list(plain.state_dict())
    for x in _batches(SHAPES[layout]):
        first = x.movedim(-1, 1) if layout == "tokens" else x
        want = _reference(first, 3, 1e-3)
        got = layer(x)
        torch.testing.assert_close(got.movedim(-1, 1) if layout == "tokens" else got, want)
        plain(first.flatten(2))
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    layer.eval()
    got, want = layer(x), plain.eval()(first.flatten(2)).reshape(first.shape)
    torch.testing.assert_close(got.movedim(-1, 1) if layout == "tokens" else got, want)


@pytest.mark.parametrize("layout", TORCH)
def test_it_is_torchs_class_and_of_one_chunk_torchs_layer(layout: str) -> None:
    ours, theirs = create_norm("ghost", 3, layout=layout, num_splits=1), TORCH[layout](3)
    assert isinstance(ours, TORCH[layout])
    for x in _batches(SHAPES[layout]):
        assert torch.equal(ours(x.float()), theirs(x.float()))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@given(
    chunks=st.integers(1, 4),
    each=st.integers(1, 3),
    channels=st.integers(1, 4),
    space=st.lists(st.integers(2, 3), min_size=1, max_size=3),
)
def test_any_shape(chunks: int, each: int, channels: int, space: list[int]) -> None:
    x = torch.randn(chunks * each, channels, *space, dtype=torch.float64)
    layer = GhostBatchNorm(channels, num_splits=chunks, dtype=torch.float64)
    torch.testing.assert_close(layer(x), _reference(x, chunks))
    whole = x.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * whole)


def test_a_small_chunk_is_noisier_than_the_batch() -> None:
    x = _batches((6, 3, 5, 4))[2]
    whole = GhostBatchNorm(3, num_splits=1, dtype=torch.float64)(x)
    assert (GhostBatchNorm(3, num_splits=3, dtype=torch.float64)(x) - whole).abs().max() > 0.1


def test_channels_last_stays() -> None:
    x = _batches((6, 3, 5, 4))[1].float().to(memory_format=torch.channels_last)
    assert GhostBatchNorm(3)(x).is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_input_and_recovery() -> None:
    layer = GhostBatchNorm(3, num_splits=2, dtype=torch.float64)
    x = _batches((4, 3, 2, 2))[1].requires_grad_()
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        buffers = {key: each.clone() for key, each in layer.named_buffers()}
        state = {"weight": weight, "bias": bias, **buffers}
        y: Tensor = torch.func.functional_call(layer, state, (x,))
        return y

    assert torch.autograd.gradcheck(forward, (x, weight, bias))


def test_without_a_population_the_chunks_are_those_of_training_only() -> None:
    layer = GhostBatchNorm(3, num_splits=2, track_running_stats=False, dtype=torch.float64)
    x = _batches((6, 3, 5, 4))[1]
    torch.testing.assert_close(layer(x), _reference(x, 2))
    torch.testing.assert_close(layer.eval()(x[:5]), _reference(x[:5], 1))


def test_only_the_population_is_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = _batches((6, 3, 5, 4))[:2]

    def joined(moments: Moments, group: object = None) -> Moments:
        return moments.merge(Moments.of(there, moments.partition))

    monkeypatch.setattr(ghost, "gather", joined)
    layer = GhostBatchNorm(3, num_splits=3, sync=True, dtype=torch.float64)
    torch.testing.assert_close(layer(here), _reference(here, 3))
    plain = nn.BatchNorm2d(3, dtype=torch.float64)
    plain(torch.cat([here, there]))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_what_cannot_be_chunked() -> None:
    layer = GhostBatchNorm(3, num_splits=4)
    with pytest.raises(InputError, match=r"a batch of 6 has no 4 equal chunks \(num_splits\)"):
        layer(torch.randn(6, 3, 5, 4))
    with pytest.raises(InputError, match=r"1 sample\(s\) a channel and chunk, needs 2"):
        layer(torch.randn(4, 3, 1, 1))
    assert not layer.num_batches_tracked
    layer.eval()(torch.randn(1, 3, 1, 1))
    layer.train().frozen = True
    layer(torch.randn(1, 3, 1, 1))
    with pytest.raises(InputError, match="num_splits 0: must be at least 1"):
        GhostBatchNorm(3, num_splits=0)
    with pytest.raises(InputError, match="unknown layout"):
        GhostBatchNorm.for_layout("4d")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_in_half_precision_the_chunks_are_measured_in_float32(
    dtype: torch.dtype, affine: bool
) -> None:
    """More samples than float16 can count, and a variance that bfloat16 loses beside the mean."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(8, 3, 100, 100, generator=generator) + 20).to(dtype)
    layer = GhostBatchNorm(3, momentum=1.0, affine=affine).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    exact = GhostBatchNorm(3, momentum=1.0, affine=affine).double()
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=0.01, atol=0.01)
    for name in ("running_mean", "running_var"):
        found, expected = getattr(layer, name), getattr(exact, name)
        assert torch.equal(found, expected.to(dtype)), name
