"""Operations: the diagonal ones against torch's layers, the full ones against their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import (
    BATCH,
    INSTANCE,
    LAYER,
    POSITION,
    Moments,
    Partition,
    center,
    channel_groups,
    color,
    ghost,
    groups,
    restore,
    scale,
    standardize,
    whiten,
)
from normapps.norm.operations import whitening_matrix

ALL = [BATCH, INSTANCE, LAYER, POSITION, groups(3), ghost(2), channel_groups(3)]
by_kind = pytest.mark.parametrize("partition", ALL, ids=lambda partition: partition.kind)
by_method = pytest.mark.parametrize("method", ["zca", "pca", "cholesky"])

EPS = 1e-5


def _activation(*shape: int, seed: int = 0) -> Tensor:
    """Correlated channels of unlike means, well conditioned, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    mixing = torch.eye(shape[1]) + 0.5 * mixing / shape[1] ** 0.5
    x = torch.einsum("dc,nc...->nd...", mixing, x).contiguous()
    return x + torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2))


# diagonal: torch's layers


def _position_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=EPS).movedim(-1, 1)


def _ghost_norm(x: Tensor) -> Tensor:
    return torch.cat([F.batch_norm(part, None, None, training=True) for part in x.chunk(2)])


TORCH: list[tuple[Partition, Callable[[Tensor], Tensor]]] = [
    (BATCH, lambda x: F.batch_norm(x, None, None, training=True)),
    (channel_groups(3), lambda x: F.batch_norm(x, None, None, training=True)),
    (INSTANCE, F.instance_norm),
    (LAYER, lambda x: F.layer_norm(x, x.shape[1:])),
    (groups(3), lambda x: F.group_norm(x, 3)),
    (groups(1), lambda x: F.layer_norm(x, x.shape[1:])),
    (groups(6), F.instance_norm),
    (POSITION, _position_norm),
    (ghost(2), _ghost_norm),
]


@pytest.mark.parametrize(("partition", "layer"), TORCH, ids=lambda each: getattr(each, "kind", ""))
@pytest.mark.parametrize("shape", [(4, 6, 3, 5), (2, 6, 7), (2, 6, 2, 3, 2)])
def test_partition_and_standardize_are_torchs_layers(
    partition: Partition, layer: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    x = _activation(*shape)
    torch.testing.assert_close(standardize(x, Moments.of(x, partition), EPS), layer(x))


def test_population_moments_are_batch_norm_at_inference() -> None:
    x, seen = _activation(4, 6, 3, 5), Moments.of(_activation(8, 6, 4, 4, seed=1), BATCH)
    want = F.batch_norm(x, seen.mean[0], seen.var[0], training=False)
    torch.testing.assert_close(standardize(x, seen), want)


@pytest.mark.parametrize("partition", [LAYER, groups(2)], ids=lambda partition: partition.kind)
def test_scale_is_rms_norm(partition: Partition) -> None:
    x = _activation(2, 6, 3, 5)
    apart = x.reshape(-1, 6 // partition.size if partition.kind == "group" else 6, 3, 5)
    want = F.rms_norm(apart, apart.shape[1:], eps=EPS).reshape(x.shape)
    torch.testing.assert_close(scale(x, Moments.of(x, partition), EPS), want)


@by_kind
def test_center_subtracts_the_mean_and_nothing_else(partition: Partition) -> None:
    x = _activation(4, 6, 3, 5)
    want = partition.split(x) - partition.split(x).mean(2, keepdim=True)
    torch.testing.assert_close(center(x, Moments.of(x, partition)), partition.join(want, x.shape))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[Partition, Tensor]:
    partition = draw(st.sampled_from([BATCH, INSTANCE, LAYER, POSITION, groups(2), ghost(2)]))
    space = draw(st.lists(st.integers(1, 5), max_size=3))
    shape = (2 * draw(st.integers(1, 2)), 2 * draw(st.integers(1, 3)), *space)
    return partition, _activation(*shape, seed=draw(st.integers(0, 99)))


@given(_cases(), st.floats(1e-6, 1e-1))
def test_restore_undoes_standardize(case: tuple[Partition, Tensor], eps: float) -> None:
    partition, x = case
    moments = Moments.of(x, partition)
    torch.testing.assert_close(restore(standardize(x, moments, eps), moments, eps), x)
    single = x.float()
    moments = Moments.of(single, partition)
    again = restore(standardize(single, moments, eps), moments, eps)
    torch.testing.assert_close(again, single, rtol=1e-4, atol=1e-4)


def test_hard_data_are_standardized_as_well_as_by_torch() -> None:
    x = (_activation(2, 3, 50, 50) * 0.05 + 1e4).float()
    exact = x.double()
    moments = Moments.of(exact)
    want = standardize(exact, moments)
    ours = (standardize(x, Moments.of(x)) - want).abs().max()
    torchs = (F.instance_norm(x) - want).abs().max()
    assert ours <= 2 * torchs
    # one unit in the last place of x, in deviations; the mean, a product and two sums round
    unit = torch.finfo(torch.float32).eps * x.abs().max() / moments.std().min()
    assert ours <= 4 * unit


# what every operation keeps


def _everything(x: Tensor, partition: Partition) -> dict[str, Tensor]:
    moments = Moments.of(x, partition, full=True)
    return {
        "center": center(x, moments),
        "scale": scale(x, moments),
        "standardize": standardize(x, moments),
        "restore": restore(x, moments),
        "whiten": whiten(x, moments),
        "color": color(x, moments),
    }


@by_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_half_computed_in_float32(
    partition: Partition, dtype: torch.dtype
) -> None:
    x = _activation(4, 6, 8, 8).to(dtype)
    wanted = _everything(x.float(), partition)
    for name, got in _everything(x, partition).items():
        assert got.dtype == dtype, name
        torch.testing.assert_close(got, wanted[name].to(dtype), msg=name)


@by_kind
def test_float64_meets_float32_moments(partition: Partition) -> None:
    x = _activation(4, 6, 8, 8)
    moments = Moments.of(x.float(), partition, full=True)
    for operation in (standardize, whiten):
        got = operation(x, moments)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, operation(x, moments.to(torch.float64)), atol=1e-5, rtol=0)


@by_kind
def test_the_memory_format_is_kept(partition: Partition) -> None:
    x = _activation(4, 6, 8, 5).float()
    turned = x.to(memory_format=torch.channels_last)
    wanted = _everything(x, partition)
    for name, got in _everything(turned, partition).items():
        torch.testing.assert_close(got, wanted[name], atol=1e-4, rtol=1e-4)
        if partition == INSTANCE or name not in ("whiten", "color"):
            assert got.is_contiguous(memory_format=torch.channels_last), name
            assert wanted[name].is_contiguous(), name


@by_kind
def test_autocast_changes_nothing(partition: Partition) -> None:
    x = _activation(4, 6, 8, 5).float()
    wanted = _everything(x, partition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _everything(x, partition)
    for name, got in found.items():
        torch.testing.assert_close(got, wanted[name], rtol=0, atol=0, msg=name)


@by_kind
def test_moments_of_one_group_serve_every_group(partition: Partition) -> None:
    x = _activation(4, 6, 3, 5)
    number, width, _ = partition.shape(x.shape)
    one = Moments.of(_activation(1, width, 9, 9, seed=1), full=True)
    assert one.cov is not None
    every = [each.expand(number, *each.shape[1:]) for each in (one.count, one.mean, one.var)]
    many = Moments(*every, one.cov.expand(number, -1, -1), partition)
    single = Moments(one.count, one.mean, one.var, one.cov, partition)
    for operation in (center, scale, standardize, restore, whiten, color):
        torch.testing.assert_close(operation(x, single), operation(x, many))


@pytest.mark.parametrize("operation", [center, scale, standardize, restore, whiten, color])
@pytest.mark.parametrize("shape", [(3, 6, 4, 4), (2, 5, 4, 4), (2, 1, 4, 4), (1, 3, 4, 4)])
def test_moments_that_do_not_fit_are_refused(
    operation: Callable[[Tensor, Moments], Tensor], shape: tuple[int, ...]
) -> None:
    moments = Moments.of(_activation(*shape), full=True)
    with pytest.raises(InputError, match="do not fit"):
        operation(_activation(2, 6, 3, 3), moments)


# whitening and colouring


@by_kind
@by_method
def test_whitened_features_are_white(partition: Partition, method: str) -> None:
    x = _activation(8, 6, 9, 9)
    white = whiten(x, Moments.of(x, partition, full=True), method, 1e-12)
    got = Moments.of(white, partition, full=True)
    assert got.cov is not None
    eye = torch.eye(got.mean.shape[1], dtype=torch.float64)
    torch.testing.assert_close(got.cov, eye.expand_as(got.cov), atol=1e-6, rtol=0)
    torch.testing.assert_close(got.mean, torch.zeros_like(got.mean), atol=1e-9, rtol=0)


@by_method
def test_whitening_in_float32(method: str) -> None:
    x = _activation(2, 6, 20, 20).float()
    got = Moments.of(whiten(x, Moments.of(x, full=True), method, 0.0), full=True)
    assert got.cov is not None
    torch.testing.assert_close(got.cov, torch.eye(6).expand_as(got.cov), atol=1e-3, rtol=0)


@by_method
def test_whitening_one_channel_at_a_time_is_batch_norm(method: str) -> None:
    x = _activation(4, 6, 3, 5)
    got = whiten(x, Moments.of(x, channel_groups(1), full=True), method, EPS)
    want = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(got.abs() if method == "pca" else got, _up_to_sign(want, method))


def _up_to_sign(x: Tensor, method: str) -> Tensor:
    return x.abs() if method == "pca" else x


@by_kind
@by_method
def test_coloring_undoes_whitening(partition: Partition, method: str) -> None:
    x = _activation(4, 6, 3, 5)
    moments = Moments.of(x, partition, full=True)
    again = color(whiten(x, moments, method), moments, method)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)


@by_method
def test_coloring_gives_white_features_the_moments(method: str) -> None:
    noise = _activation(1, 4, 30, 30, seed=1)
    white = whiten(noise, Moments.of(noise, full=True), "cholesky", 0.0)
    wanted = Moments.of(_activation(1, 4, 9, 9, seed=2), full=True)
    got = Moments.of(color(white, wanted, method, 0.0), full=True)
    torch.testing.assert_close(got.mean, wanted.mean)
    torch.testing.assert_close(got.cov, wanted.cov)


def _matrix_of(method: str, moments: Moments) -> np.ndarray:
    """The whitening matrix, read off by whitening the unit vectors."""
    d = moments.mean.shape[1]
    units = torch.eye(d, dtype=torch.float64).reshape(1, d, d) + moments.mean.unsqueeze(2)
    return whiten(units, moments, method, 0.0)[0].numpy()


def test_each_whitening_matrix_is_the_one_of_its_name() -> None:
    moments = Moments.of(_activation(1, 5, 9, 9), full=True)
    assert moments.cov is not None
    cov = moments.cov[0].numpy()
    zca, pca, cholesky = (_matrix_of(name, moments) for name in ("zca", "pca", "cholesky"))
    np.testing.assert_allclose(zca, zca.T, atol=1e-10)
    np.testing.assert_allclose(zca @ zca, np.linalg.inv(cov), rtol=1e-8)
    np.testing.assert_allclose(cholesky, np.linalg.inv(np.linalg.cholesky(cov)), atol=1e-9)
    # rows of PCA are eigenvectors, in the order of the eigenvalues
    values, vectors = np.linalg.eigh(cov)
    np.testing.assert_allclose(np.abs(pca * np.sqrt(values)[:, None]), np.abs(vectors.T), atol=1e-8)


@by_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 12, 2, 2), (1, 6, 1, 1), (2, 6, 5, 5)])
def test_fewer_samples_than_channels_stay_finite(
    shape: tuple[int, ...], dtype: torch.dtype, method: str
) -> None:
    x = _activation(*shape).to(dtype) * 100
    x[:, 1] = 3  # a dead channel
    moments = Moments.of(x, full=True)
    white = whiten(x, moments, method)
    assert white.isfinite().all()
    assert white.abs().max() < 10 * shape[2]
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(color(white, moments, method), x, rtol=tolerance, atol=tolerance)


# whitening by Newton's iteration


def _spectrum(condition: float, width: int = 64) -> tuple[Tensor, Moments]:
    """Full moments of log-spaced eigenvalues in random directions, and the covariance, float64."""
    generator = torch.Generator().manual_seed(0)
    values = torch.logspace(0, -np.log10(condition), width, dtype=torch.float64)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(noise).Q
    cov = (vectors * values @ vectors.T)[None]
    var = cov.diagonal(dim1=1, dim2=2)
    return cov[0], Moments(torch.ones(1), torch.zeros_like(var), var, cov, BATCH)


@pytest.mark.parametrize(("condition", "smallest"), [(1, 0.59), (10, 0.20), (100, 0.04)])
def test_newton_whitens_in_part(condition: float, smallest: float) -> None:
    cov, moments = _spectrum(condition)
    matrix = whitening_matrix(moments, "newton", 0.0)[0]
    found = torch.linalg.eigvalsh(matrix @ cov @ matrix.T)
    assert abs(float(found.min()) - smallest) < 0.005
    assert found.max() <= 1 + 1e-9
    # eigenvalue by eigenvalue it is a recurrence of numbers
    share = torch.linalg.eigvalsh(cov) / cov.trace()
    root, inverse = share, torch.ones_like(share)
    for _ in range(5):
        step = (3 - inverse * root) / 2
        root, inverse = root * step, inverse * step
    torch.testing.assert_close(found, (share * inverse.square()).sort().values)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_newton_is_the_papers_iteration(iterations: int) -> None:
    cov, moments = _spectrum(3, width=8)
    scaled = (cov / cov.trace()).numpy()
    power = np.eye(8)
    for _ in range(iterations):
        power = (3 * power - power @ power @ power @ scaled) / 2
    got = whitening_matrix(moments, "newton", 0.0, iterations)[0]
    np.testing.assert_allclose(got, power / np.sqrt(float(cov.trace())), atol=1e-10)


def test_newton_ends_at_zca_and_is_stable() -> None:
    cov, moments = _spectrum(100)
    zca = whitening_matrix(moments, "zca", 0.0)
    torch.testing.assert_close(whitening_matrix(moments, "newton", 0.0, 40), zca)
    single = whitening_matrix(moments.to(torch.float32), "newton", 0.0, 40)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), zca, rtol=1e-4, atol=1e-4)
    # the papers' form does not stay there
    scaled = (cov / cov.trace()).float()
    power = torch.eye(64)
    for _ in range(40):
        power = (3 * power - power @ power @ power @ scaled) / 2
    assert not torch.allclose(power / cov.trace().sqrt(), zca[0].float(), rtol=0.1, atol=0.1)


@settings(max_examples=5)
@given(samples=st.integers(1, 6))
def test_newton_has_a_gradient_whatever_the_rank(samples: int) -> None:
    x = _activation(1, 4, samples).requires_grad_()

    def whitened(x: Tensor) -> Tensor:
        return whiten(x, Moments.of(x, full=True), "newton", 0.1, 3)

    assert torch.autograd.gradcheck(whitened, x)


def test_newton_of_one_channel_at_a_time_is_batch_norm() -> None:
    x = _activation(4, 6, 3, 5)
    got = whiten(x, Moments.of(x, channel_groups(1), full=True), "newton", EPS)
    torch.testing.assert_close(got, F.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize("method", ["zca", "pca", "cholesky", "newton"])
def test_whitening_is_its_matrix(method: str) -> None:
    x = _activation(4, 6, 3, 5)
    moments = Moments.of(x, channel_groups(3), full=True)
    centred = channel_groups(3).split(x) - moments.mean.unsqueeze(2)
    want = channel_groups(3).join(whitening_matrix(moments, method) @ centred, x.shape)
    torch.testing.assert_close(whiten(x, moments, method), want)


def test_autocast_does_not_reach_newton() -> None:
    _, moments = _spectrum(10)
    moments = moments.to(torch.float32)
    want = whitening_matrix(moments, "newton")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(whitening_matrix(moments, "newton"), want)


def test_what_cannot_be_whitened() -> None:
    x = _activation(1, 3, 4, 4)
    with pytest.raises(InputError, match=r"diagonal: measure them by Moments\.of"):
        whiten(x, Moments.of(x))
    with pytest.raises(InputError, match="unknown whitening method 'zac'; did you mean 'zca'"):
        whiten(x, Moments.of(x, full=True), "zac")
    with pytest.raises(InputError, match="iterations 0: must be at least 1"):
        whiten(x, Moments.of(x, full=True), "newton", iterations=0)
    with pytest.raises(InputError, match="unknown coloring method 'choleski'; did you mean 'chol"):
        color(x, Moments.of(x, full=True), "choleski")


@pytest.mark.parametrize("method", ["zca", "cholesky"])
@settings(max_examples=5)
@given(samples=st.integers(1, 6))
def test_whitening_has_a_gradient_whatever_the_rank(method: str, samples: int) -> None:
    x = _activation(1, 4, samples).requires_grad_()

    def whitened(x: Tensor) -> Tensor:
        return whiten(x, Moments.of(x, full=True), method, 0.1)

    assert torch.autograd.gradcheck(whitened, x)


@by_kind
def test_the_diagonal_operations_have_a_gradient(partition: Partition) -> None:
    x = _activation(2, 6, 2, 1).requires_grad_()

    def operated(x: Tensor) -> Tensor:
        moments = Moments.of(x, partition)
        return restore(scale(standardize(x, moments), moments), moments)

    assert torch.autograd.gradcheck(operated, x)
