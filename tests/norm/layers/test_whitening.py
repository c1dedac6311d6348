"""Whitening layers against the papers' formulas in numpy, at training, inference and folded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import Moments, channel_groups, convert_norm
from normapps.norm.layers.whitening import CholeskyNorm, IterNorm, Whitening, ZCANorm
from normapps.norm.registry import create_norm

NAMES = ["zca", "cholesky", "iternorm"]
by_name = pytest.mark.parametrize("name", NAMES)
LAYOUTS = {
    "any": (5, 8, 6, 2),
    "1d": (20, 8),
    "2d": (4, 8, 5, 6),
    "3d": (4, 8, 2, 3, 4),
    "tokens": (4, 9, 8),
}


def _activation(*shape: int, channels: int = 1, seed: int = 0) -> Tensor:
    """Correlated features along the axis `channels`, of unlike means, float64."""
    generator = torch.Generator().manual_seed(seed)
    c = shape[channels]
    mixing = torch.randn(c, c, generator=generator, dtype=torch.float64) / c**0.5
    x = torch.randn(shape, generator=generator, dtype=torch.float64).movedim(channels, -1)
    x = x @ (mixing + torch.eye(c)).T + torch.arange(c)
    return x.movedim(-1, channels).contiguous()


def _matrix(name: str, cov: np.ndarray) -> np.ndarray:
    if name == "cholesky":
        return np.linalg.inv(np.linalg.cholesky(cov))
    if name == "zca":
        values, vectors = np.linalg.eigh(cov)
        return vectors @ np.diag(values**-0.5) @ vectors.T
    scaled, power = cov / np.trace(cov), np.eye(len(cov))
    for _ in range(5):
        power = (3 * power - power @ power @ power @ scaled) / 2
    return power / np.sqrt(np.trace(cov))


def _moments(x: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C,) and biased covariances (G, d, d) of (N, C, *S)."""
    rows = x.double().movedim(1, 0).flatten(1).numpy()
    groups = rows.reshape(-1, size, rows.shape[1])
    return rows.mean(1), np.stack(
        [np.cov(group, bias=True).reshape(size, size) for group in groups]
    )


def _reference(
    name: str, x: Tensor, mean: np.ndarray, covs: np.ndarray, layer: Whitening
) -> np.ndarray:
    """What the layer makes of (N, C, *S) with given moments."""
    rows = x.double().movedim(1, 0).flatten(1).numpy() - mean[:, None]
    size = covs.shape[1]
    eye = layer.eps * np.eye(size)
    parts = rows.reshape(len(covs), size, -1)
    white = np.concatenate([_matrix(name, c + eye) @ p for c, p in zip(covs, parts, strict=True)])
    if layer.weight is not None:
        white = white * layer.weight.detach().double().numpy()[:, None]
    if layer.bias is not None:
        white = white + layer.bias.detach().double().numpy()[:, None]
    moved = x.movedim(1, 0)
    return np.moveaxis(white.reshape(moved.shape), 0, 1)


def _make(name: str, layout: str = "2d", **options: Any) -> Whitening:
    """A layer of 8 channels in float64 whose recovery has left its start."""
    generator = torch.Generator().manual_seed(1)
    options = {"group_size": 4, **options}
    layer = create_norm(name, 8, layout=layout, dtype=torch.float64, **options)
    assert isinstance(layer, Whitening)
    for parameter in layer.parameters():
        parameter.data += torch.randn(8, generator=generator, dtype=torch.float64)
    return layer


def _first(x: Tensor, layout: str) -> Tensor:
    return x.movedim(-1, 1) if layout == "tokens" else x


@by_name
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_training_and_inference_are_the_formulas(
    name: str, layout: str, momentum: float | None
) -> None:
    layer = _make(name, layout, momentum=momentum)
    axis = len(LAYOUTS[layout]) - 1 if layout == "tokens" else 1
    mean, covs = np.zeros(8), np.stack([np.eye(4)] * 2)
    for step in range(3):
        x = _activation(*LAYOUTS[layout], channels=axis, seed=step)
        first = _first(x, layout)
        batch = _moments(first, 4)
        want = _reference(name, first, *batch, layer)
        np.testing.assert_allclose(_first(layer(x), layout).detach(), want, atol=1e-9)
        share = 1 / (step + 1) if momentum is None else momentum
        mean, covs = mean + share * (batch[0] - mean), covs + share * (batch[1] - covs)
    np.testing.assert_allclose(layer.running_mean, mean, atol=1e-12)
    np.testing.assert_allclose(layer.running_cov, covs, atol=1e-12)
    assert layer.num_batches_tracked == 3
    want = _reference(name, first, mean, covs, layer)
    np.testing.assert_allclose(_first(layer.eval()(x), layout).detach(), want, atol=1e-9)


@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(2, 5),
    groups=st.integers(1, 3),
    size=st.integers(1, 5),
    space=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    affine=st.booleans(),
)
def test_any_shape(
    name: str, batch: int, groups: int, size: int, space: list[int], affine: bool
) -> None:
    x = _activation(batch, groups * size, *space)
    options: Any = {"group_size": size, "eps": 1e-2, "affine": affine, "dtype": torch.float64}
    layer = create_norm(name, groups * size, **options)
    assert isinstance(layer, Whitening)
    if x.numel() // x.shape[1] <= size:
        with pytest.raises(InputError, match="group_size"):
            layer(x)
        return
    want = _reference(name, x, *_moments(x, size), layer)
    np.testing.assert_allclose(layer(x).detach(), want, atol=1e-7)


@by_name
@pytest.mark.parametrize("layout", ["1d", "2d", "3d", "tokens"])
def test_one_channel_at_a_time_is_batch_norm(name: str, layout: str) -> None:
    ours = _make(name, layout, group_size=1, eps=1e-5)
    theirs = create_norm("batch", 8, layout=layout, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for step in range(3):
        x = (
            _activation(*LAYOUTS[layout], seed=step)
            if layout != "tokens"
            else torch.randn(4, 9, 8, dtype=torch.float64)
        )
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    samples = x.numel() // 8
    # torch keeps the unbiased variance, we the biased covariance; both began at 1
    kept = 0.9**3
    unbiased = (ours.running_cov.flatten() - kept) * samples / (samples - 1) + kept
    torch.testing.assert_close(unbiased, theirs.running_var)


@pytest.mark.parametrize("name", ["zca", "cholesky"])
def test_the_output_is_white(name: str) -> None:
    x = _activation(16, 8, 9, 9)
    for size in (4, 8):
        layer = create_norm(name, 8, group_size=size, eps=1e-9, dtype=torch.float64)
        _, covs = _moments(layer(x).detach(), size)
        np.testing.assert_allclose(covs, np.stack([np.eye(size)] * (8 // size)), atol=1e-6)


def test_the_defaults_are_the_papers() -> None:
    zca, cholesky, newton = ZCANorm(192), CholeskyNorm(192), IterNorm(192)
    assert (zca.group_size, zca.eps) == (cholesky.group_size, cholesky.eps) == (16, 1e-3)
    assert (newton.group_size, newton.eps, newton.iterations) == (64, 1e-5, 5)
    assert newton.running_cov is not None
    assert newton.running_cov.shape == (3, 64, 64)


@pytest.mark.parametrize(("channels", "limit", "size"), [(6, 4, 3), (7, 4, 1), (48, 32, 24)])
def test_the_group_size_is_the_largest_that_divides(channels: int, limit: int, size: int) -> None:
    layer = ZCANorm(channels, group_size=limit)
    assert layer.group_size == size
    assert layer.running_cov is not None
    assert layer.running_cov.shape == (channels // size, size, size)
    assert ZCANorm(channels, group_size=None).group_size == channels


def test_more_iterations_whiten_more() -> None:
    x = _activation(16, 8, 9, 9)
    smallest = []
    for iterations in (1, 5, 20):
        layer = create_norm("iternorm", 8, iterations=iterations, dtype=torch.float64)
        _, (cov,) = _moments(layer(x).detach(), 8)
        smallest.append(np.linalg.eigvalsh(cov)[0])
    assert smallest[0] < smallest[1] < smallest[2]
    assert smallest[2] > 0.99


@by_name
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_input_and_recovery(name: str, affine: bool) -> None:
    layer = _make(name, affine=affine)
    x = _activation(3, 8, 2, 1).requires_grad_()
    names = [key for key, _ in layer.named_parameters()]
    values = [each.detach().clone().requires_grad_() for each in layer.parameters()]

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {key: each.clone() for key, each in layer.named_buffers()}
        state = dict(zip(names, parameters, strict=True)) | buffers
        y: Tensor = torch.func.functional_call(layer, state, (x,))
        return y

    for training in (True, False):
        layer.train(training)
        assert torch.autograd.gradcheck(forward, (x, *values))


def _nearly_dependent() -> Tensor:
    """Channels that differ little beside what they share: a covariance bfloat16 cannot hold."""
    generator = torch.Generator().manual_seed(2)
    shared = torch.randn(8, 1, 6, 6, generator=generator)
    return shared + 0.05 * torch.randn(8, 8, 6, 6, generator=generator) + 3


@by_name
def test_statistics_and_matrices_are_float32_under_autocast(name: str) -> None:
    x = _nearly_dependent()
    layer = create_norm(name, 8, eps=1e-5)
    assert isinstance(layer, Whitening)
    mean, covs = _moments(x, 8)
    want = _reference(name, x, mean, covs, layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x)
        rows = x.movedim(1, 0).flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        naive = (rows @ rows.T / rows.shape[1]).double().numpy()
    np.testing.assert_allclose(got.detach(), want, atol=1e-3)
    assert np.linalg.eigvalsh(naive)[0] < -layer.eps  # not even a covariance


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    x = _activation(4, 8, 9, 9).to(dtype)
    layer = create_norm(name, 8, group_size=4)
    assert isinstance(layer, Whitening)
    want = _reference(name, x, *_moments(x, 4), layer)
    got = layer(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got, torch.from_numpy(want).to(dtype), rtol=2e-2, atol=2e-2)
    assert layer.running_cov is not None
    assert layer.running_cov.dtype == torch.float32
    np.testing.assert_allclose(layer.running_mean, 0.1 * _moments(x, 4)[0], rtol=1e-4, atol=1e-5)


@by_name
def test_the_memory_format_stays(name: str) -> None:
    x = _activation(4, 8, 5, 6).to(memory_format=torch.channels_last)
    for layer in (_make(name), _make(name).eval()):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
        assert layer(x.contiguous()).is_contiguous()


# state


@by_name
def test_a_batch_norms_variance_is_loaded_as_the_diagonal(name: str) -> None:
    batch = nn.BatchNorm2d(8)
    batch(_activation(4, 8, 5, 6).float())
    layer = create_norm(name, 8, group_size=4, layout="2d")
    layer.load_state_dict(batch.state_dict())
    assert torch.equal(layer.running_mean, batch.running_mean)
    diagonal = torch.stack([part.diag() for part in batch.running_var.split(4)])
    assert torch.equal(layer.running_cov, diagonal)
    assert layer.num_batches_tracked == 1
    x = _activation(2, 8, 3, 3).float()
    if name != "iternorm":  # which whitens in part only
        batch.eps = layer.eps
        torch.testing.assert_close(layer.eval()(x), batch.eval()(x), rtol=1e-4, atol=1e-4)


def test_within_a_network_too() -> None:
    old = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    state = dict(old.state_dict())
    new = nn.Sequential(nn.Conv2d(3, 8, 1), ZCANorm(8, group_size=4))
    new.load_state_dict(state)
    assert "1.running_var" in state


def test_an_old_state_without_a_counter_is_loaded() -> None:
    layer = ZCANorm(8)
    state = {key: each for key, each in layer.state_dict().items() if "num" not in key}
    layer.load_state_dict(state)  # of a plain dict, whose version is not known
    assert layer.num_batches_tracked == 0
    current = layer.state_dict()
    del current["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        layer.load_state_dict(current)


def test_a_state_that_does_not_fit_is_refused_by_its_key() -> None:
    state = ZCANorm(8, group_size=4).state_dict()
    with pytest.raises(RuntimeError, match="running_cov"):
        ZCANorm(8, group_size=2).load_state_dict(state)
    with pytest.raises(RuntimeError, match="running_var"):
        ZCANorm(8).load_state_dict(nn.BatchNorm2d(6).state_dict())


@by_name
def test_without_a_population_inference_measures(name: str) -> None:
    layer = _make(name, track_running_stats=False)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = _activation(4, 8, 5, 6)
    assert torch.equal(layer.eval()(x), layer.train()(x))
    with pytest.raises(InputError, match="tracks no population"):
        layer.fold()


def test_the_population_is_a_value() -> None:
    layer = _make("zca")
    layer(_activation(4, 8, 5, 6))
    population = layer.population()
    assert population.partition == channel_groups(4)
    assert torch.equal(population.cov, layer.running_cov)
    torch.testing.assert_close(
        population.var.flatten(), layer.running_cov.diagonal(0, 1, 2).flatten()
    )
    x = _activation(2, 8, 3, 3, seed=5)
    measured = Moments.of(x, layer.partition(), full=True)
    layer.frozen = True
    assert not torch.equal(layer.moments(x).mean, measured.mean)


# too little to measure


@by_name
def test_too_few_samples_are_refused_by_the_groups_size(name: str) -> None:
    layer = _make(name)
    with pytest.raises(InputError, match=r"4 sample\(s\) a channel, needs 5") as error:
        layer(_activation(1, 8, 2, 2))
    for remedy in ("larger batches", "a smaller group_size", "freeze_norm_"):
        assert remedy in str(error.value)
    assert layer.num_batches_tracked == 0
    layer(_activation(1, 8, 5, 1))
    layer.eval()(_activation(1, 8, 1, 1))
    with pytest.raises(InputError, match="a group size of 0"):
        create_norm(name, 8, group_size=0)


def test_newton_needs_an_iteration() -> None:
    with pytest.raises(InputError, match="iterations 0"):
        IterNorm(8, iterations=0)


# folding


def _trained(name: str, layout: str, **options: Any) -> tuple[Whitening, Tensor]:
    layer = _make(name, layout, momentum=0.5, **options).float()
    axis = len(LAYOUTS[layout]) - 1 if layout == "tokens" else 1
    x = _activation(*LAYOUTS[layout], channels=axis).float()
    layer(x)
    return layer.eval(), x


@by_name
@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        *(("any", nn.Conv1d), ("1d", nn.Conv1d), ("2d", nn.Conv2d), ("3d", nn.Conv3d)),
        ("tokens", nn.Linear),
    ],
)
def test_folded_it_is_a_product_of_torch(name: str, layout: str, kind: type[nn.Module]) -> None:
    layer, x = _trained(name, layout)
    folded = layer.fold()
    assert isinstance(folded, kind)
    assert not folded.training
    assert set(folded.state_dict()) == {"weight", "bias"}
    if isinstance(folded, nn.Conv2d):
        assert (folded.groups, folded.kernel_size) == (2, (1, 1))
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)


def test_of_one_dimension_it_takes_two_axes_or_three() -> None:
    layer, x = _trained("zca", "1d")
    for rows in (x, torch.stack([x, x + 1], 2)):
        torch.testing.assert_close(layer.fold()(rows), layer(rows), rtol=1e-5, atol=1e-5)


def test_folding_carries_activation_and_dropout() -> None:
    layer, x = _trained("zca", "2d", act=nn.ReLU, drop=nn.Dropout)
    folded = layer.fold()
    assert [type(each) for each in folded] == [nn.Conv2d, nn.Dropout, nn.ReLU]
    torch.testing.assert_close(folded.eval()(x), layer(x), rtol=1e-5, atol=1e-5)
    bare, x = _trained("zca", "2d", affine=False)
    torch.testing.assert_close(bare.fold()(x), bare(x), rtol=1e-5, atol=1e-5)


def test_folding_keeps_the_dtype() -> None:
    layer, x = _trained("zca", "2d")
    folded = layer.to(torch.bfloat16).fold()
    got = folded(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, layer(x.to(torch.bfloat16)), rtol=0.05, atol=0.05)


def test_folded_it_runs_outside_of_torch(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer, x = _trained("iternorm", "2d", act=nn.ReLU)
    file = str(tmp_path / "folded.onnx")
    torch.onnx.export(layer.fold().eval(), (x,), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, layer(x).detach(), rtol=1e-4, atol=1e-5)


# casts


def _ill_conditioned() -> tuple[Whitening, Tensor]:
    """A ZCA layer with the population of features of condition 10⁴ and more, at inference."""
    x = torch.randn(64, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.einsum("ij,njhw->nihw", _mixing(16) * torch.logspace(1, -1, 16), x)
    layer = ZCANorm(16, momentum=None, layout="2d")
    layer(x)
    assert torch.linalg.cond(layer.running_cov).max() > 1e4
    return layer.eval(), x


def _mixing(channels: int) -> Tensor:
    return torch.randn(channels, channels, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_keeps_the_population_in_float32(dtype: torch.dtype) -> None:
    layer, x = _ill_conditioned()
    expected = layer(x)
    cast = copy.deepcopy(layer).to(dtype)
    assert cast.weight is not None
    assert cast.weight.dtype == dtype
    assert torch.equal(cast.running_cov, layer.running_cov)
    assert torch.equal(cast.running_mean, layer.running_mean)
    given = x.to(dtype)
    assert cast(given).dtype == dtype
    torch.testing.assert_close(cast(given).float(), layer(given.float()), rtol=0.01, atol=0.05)
    folded = cast.cpu().fold()(given)  # a move is no cast: the folded layer stays in half
    assert folded.dtype == dtype
    assert folded.float().abs().max() < 2 * expected.abs().max()
    assert cast.double().running_cov.dtype == torch.float64


def test_a_half_checkpoint_is_loaded_into_float32() -> None:
    layer, x = ZCANorm(8, dtype=torch.float16), _activation(8, 8, 5, 5).half()
    assert layer.weight is not None
    layer.weight.data.fill_(2)
    layer(x)
    fresh = ZCANorm(8, dtype=torch.float16)
    fresh.load_state_dict({key: each.half() for key, each in layer.state_dict().items()})
    assert fresh.running_cov is not None
    assert fresh.running_cov.dtype == torch.float32
    torch.testing.assert_close(fresh.eval()(x), layer.eval()(x), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_converting_a_half_network_and_back_keeps_it_runnable(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).to(dtype).eval()
    x = torch.ones(2, 3, 4, 4, dtype=dtype)
    white = convert_norm(model, "zca")
    assert white[1].running_mean.dtype == white[1].running_cov.dtype == torch.float32
    assert white(x).dtype == dtype
    back = convert_norm(white, "batch")
    assert back[1].running_mean.dtype == back[1].running_var.dtype == dtype
    assert back(x).dtype == dtype
