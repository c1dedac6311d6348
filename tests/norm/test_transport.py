"""Transport between moments and barycentres of them: reached, least, and on the geodesic."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normapps.errors import InputError
from normapps.norm import (
    BATCH,
    INSTANCE,
    Moments,
    Partition,
    barycenter,
    groups,
    mix,
    transport,
    transport_matrix,
)

FULL = ["zca", "cholesky", "ot"]
EVERY = ["diagonal", *FULL]
every_method = pytest.mark.parametrize("method", EVERY)
full_method = pytest.mark.parametrize("method", FULL)

EPS = 1e-5
seeds = st.integers(0, 10**6)


def _activation(*shape: int, seed: int = 0) -> Tensor:
    """Correlated channels of unlike means, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    mixing = torch.eye(shape[1]) + 0.5 * mixing / shape[1] ** 0.5
    x = torch.einsum("dc,nc...->nd...", mixing, x).contiguous()
    return x + torch.randn(shape[1], generator=generator).view(-1, *[1] * (len(shape) - 2))


def _pair(seed: int = 0, channels: int = 4) -> tuple[Tensor, Moments, Moments]:
    content = _activation(1, channels, 9, 8, seed=seed)
    style = _activation(1, channels, 7, 7, seed=seed + 1) * 2
    return content, Moments.of(content, full=True), Moments.of(style, full=True)


def _cov(moments: Moments, eps: float = 0.0) -> np.ndarray:
    assert moments.cov is not None
    return moments.cov[0].double().numpy() + eps * np.eye(moments.mean.shape[1])


def _root(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(scipy.linalg.sqrtm(matrix).real)


def _optimal(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The map of Dowson & Landau 1982, by scipy."""
    root = _root(source)
    inverse = np.linalg.inv(root)
    return np.asarray(inverse @ _root(root @ target @ root) @ inverse)


# the target is reached


@full_method
@settings(max_examples=20)
@given(seed=seeds)
def test_the_matrix_takes_one_covariance_to_the_other(method: str, seed: int) -> None:
    _, source, target = _pair(seed)
    matrix = transport_matrix(source, target, method, EPS)[0].numpy()
    np.testing.assert_allclose(
        matrix @ _cov(source, EPS) @ matrix.T, _cov(target, EPS), rtol=1e-8, atol=1e-8
    )


@full_method
@settings(max_examples=20)
@given(seed=seeds)
def test_what_is_transported_has_the_moments_of_the_target(method: str, seed: int) -> None:
    content, source, target = _pair(seed)
    got = Moments.of(transport(content, source, target, method, 0.0), full=True)
    torch.testing.assert_close(got.mean, target.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got.cov, target.cov, rtol=1e-7, atol=1e-7)


@given(seed=seeds)
def test_diagonal_transport_reaches_the_mean_and_the_variance(seed: int) -> None:
    content, source, target = _pair(seed)
    got = Moments.of(transport(content, source, target, "diagonal", 0.0))
    torch.testing.assert_close(got.mean, target.mean)
    torch.testing.assert_close(got.var, target.var)


@every_method
def test_transport_of_rank_deficient_float32_features(method: str) -> None:
    basis = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    content = (basis @ torch.randn(5, 400)).relu().reshape(1, 16, 20, 20) * 30
    content[:, 3] = 0  # a dead channel
    source = Moments.of(content, full=True)
    target = Moments.of(_activation(1, 16, 3, 3, seed=1).float(), full=True)  # 9 < 16 samples
    got = transport(content, source, target, method)
    assert got.isfinite().all()
    assert (got - target.mean[..., None, None]).abs().max() < 50 * target.var.max().sqrt()


@every_method
@pytest.mark.parametrize("shape", [(2, 4, 9, 8), (2, 4, 1, 1), (1, 8, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transport_to_the_own_moments_is_the_identity(
    method: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    content = _activation(*shape).to(dtype)
    own = Moments.of(content, full=True)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-6
    got = transport(content, own, own, method)
    torch.testing.assert_close(got, content, rtol=tolerance, atol=tolerance)


# which map


def test_each_matrix_is_the_one_of_its_name() -> None:
    _, source, target = _pair()
    a, b = _cov(source, EPS), _cov(target, EPS)
    want = {
        "zca": _root(b) @ np.linalg.inv(_root(a)),
        "cholesky": np.linalg.cholesky(b) @ np.linalg.inv(np.linalg.cholesky(a)),
        "ot": _optimal(a, b),
    }
    for method, matrix in want.items():
        got = transport_matrix(source, target, method, EPS)[0].numpy()
        np.testing.assert_allclose(got, matrix, rtol=1e-7, atol=1e-9, err_msg=method)


@settings(max_examples=25)
@given(seed=seeds, channels=st.integers(1, 6))
def test_optimal_transport_displaces_least(seed: int, channels: int) -> None:
    content, source, target = _pair(seed, channels)
    moved = {m: transport(content, source, target, m, 0.0) - content for m in FULL}
    cost = {m: d.square().sum(1).mean().item() for m, d in moved.items()}
    a, b = _cov(source), _cov(target)
    root = _root(a)
    distance = np.trace(a + b - 2 * _root(root @ b @ root))
    distance += (source.mean - target.mean).square().sum().item()
    np.testing.assert_allclose(cost["ot"], distance, rtol=1e-6)
    assert cost["ot"] <= min(cost["zca"], cost["cholesky"]) * (1 + 1e-9)


def test_optimal_transport_is_strictly_less_where_covariances_do_not_commute() -> None:
    content, source, target = _pair()
    cost = [(transport(content, source, target, m) - content).square().mean() for m in FULL]
    assert cost[2] < 0.999 * min(cost[:2])


# the way there


@every_method
def test_strength_zero_and_one(method: str) -> None:
    content, source, target = _pair()
    nothing = transport(content, source, target, method, alpha=0)
    torch.testing.assert_close(nothing, content, rtol=1e-14, atol=1e-14)
    whole = transport(content, source, target, method)
    assert torch.equal(transport(content, source, target, method, alpha=1), whole)


@every_method
@given(alpha=st.floats(0, 1))
def test_strength_mixes_the_content_and_the_result(method: str, alpha: float) -> None:
    content, source, target = _pair()
    whole = transport(content, source, target, method)
    got = transport(content, source, target, method, alpha=alpha)
    torch.testing.assert_close(got, alpha * whole + (1 - alpha) * content)


@given(seed=seeds, alpha=st.floats(0.05, 0.95))
def test_the_way_of_optimal_transport_is_the_geodesic(seed: int, alpha: float) -> None:
    content, source, target = _pair(seed)
    middle = Moments.of(transport(content, source, target, "ot", 0.0, alpha), full=True)
    a, b, m = _cov(source), _cov(target), _cov(middle)
    step = (1 - alpha) * np.eye(4) + alpha * _optimal(a, b)
    np.testing.assert_allclose(m, step @ a @ step, rtol=1e-6, atol=1e-9)

    def distance(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.sqrt(np.trace(p + q - 2 * _root(_root(p) @ q @ _root(p)))))

    np.testing.assert_allclose(distance(a, m), alpha * distance(a, b), rtol=1e-4)
    np.testing.assert_allclose(distance(a, m) + distance(m, b), distance(a, b), rtol=1e-4)


# who fits whom


@every_method
def test_one_style_serves_every_content_and_many_serve_one_each(method: str) -> None:
    content = _activation(3, 4, 6, 6)
    source = Moments.of(content, full=True)
    styles = _activation(3, 4, 5, 5, seed=1)
    many = transport(content, source, Moments.of(styles, full=True), method)
    one = transport(content, source, Moments.of(styles[:1], full=True), method)
    for i in range(3):
        own = Moments.of(content[i : i + 1], full=True)
        for got, style in ((many, styles[i : i + 1]), (one, styles[:1])):
            want = transport(content[i : i + 1], own, Moments.of(style, full=True), method)
            torch.testing.assert_close(got[i : i + 1], want)


@every_method
def test_the_partition_of_the_source_counts(method: str) -> None:
    content, pictures = _activation(2, 4, 6, 6), _activation(5, 4, 5, 5, seed=1)
    target = Moments.of(pictures, BATCH, full=True)  # a style of five pictures
    got = transport(content, Moments.of(content, full=True), target, method, 0.0)
    for each in Moments.of(got).mean:
        torch.testing.assert_close(each, target.mean[0])


@every_method
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (1, 3, 5, 5), (3, 1, 5, 5)])
def test_moments_that_do_not_fit_are_refused(method: str, shape: tuple[int, ...]) -> None:
    content, wrong = _activation(3, 4, 6, 6), Moments.of(_activation(*shape), full=True)
    right = Moments.of(content, full=True)
    for source, target in ((right, wrong), (wrong, right)):
        with pytest.raises(InputError, match="do not fit"):
            transport(content, source, target, method)


def test_what_cannot_be_transported() -> None:
    content, source, target = _pair()
    with pytest.raises(InputError, match="unknown transport method 'diag'; did you mean 'diagon"):
        transport(content, source, target, "diag")
    with pytest.raises(InputError, match=r"diagonal: measure them by Moments\.of"):
        transport(content, source, target.diagonal(), "ot")
    with pytest.raises(InputError, match="no transport from 1 x 4 to 1 x 3"):
        transport_matrix(source, _pair(channels=3)[1], "ot")
    few, more = (Moments.of(_activation(n, 2, 3, 3), full=True) for n in (2, 3))
    with pytest.raises(InputError, match="no transport from 3 x 2 to 2 x 2"):
        transport_matrix(more, few, "ot")


@pytest.mark.parametrize("partition", [BATCH, groups(1)], ids=lambda partition: partition.kind)
def test_other_partitions_are_transported_too(partition: Partition) -> None:
    content, other = _activation(2, 4, 5, 5), _activation(2, 4, 6, 6, seed=1)
    source, target = (Moments.of(x, partition, full=True) for x in (content, other))
    got = Moments.of(transport(content, source, target, "ot", 0.0), partition, full=True)
    torch.testing.assert_close(got.mean, target.mean)
    torch.testing.assert_close(got.cov, target.cov)


# precision and gradients


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_transported_in_float32(method: str, dtype: torch.dtype) -> None:
    content, _, target = _pair()
    half, target = content.to(dtype), target.to(torch.float32)
    got = transport(half, Moments.of(half, full=True), target, method)
    want = transport(half.float(), Moments.of(half.float(), full=True), target, method)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want.to(dtype))


@every_method
def test_dtypes_of_content_and_style_may_differ(method: str) -> None:
    content, source, target = _pair()
    want = transport(content, source, target, method)
    for a, b in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        got = transport(content, source.to(a), target.to(b), method)
        assert got.dtype == content.dtype
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@every_method
def test_autocast_changes_nothing(method: str) -> None:
    content, source, target = _pair()
    values = content.float(), source.to(torch.float32), target.to(torch.float32)
    want = transport(*values, method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = transport(*values, method)
    assert torch.equal(got, want)


@every_method
def test_channels_last_is_kept(method: str) -> None:
    content = _activation(2, 4, 6, 5)
    target = _pair()[2]
    want = transport(content, Moments.of(content, full=True), target, method)
    turned = content.to(memory_format=torch.channels_last)
    got = transport(turned, Moments.of(turned, full=True), target, method)
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert want.is_contiguous()


@every_method
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_transport_has_a_gradient_whatever_the_rank(method: str, samples: int) -> None:
    content = _activation(1, 3, samples).requires_grad_()
    style = _activation(1, 3, samples, seed=1).requires_grad_()

    def transported(content: Tensor, style: Tensor) -> Tensor:
        moments = [Moments.of(x, full=True) for x in (content, style)]
        return transport(content, moments[0], moments[1], method, 0.1)

    assert torch.autograd.gradcheck(transported, (content, style))


@every_method
def test_the_gradient_is_finite_where_eigenvalues_agree(method: str) -> None:
    content = torch.zeros(1, 6, 4, 4, requires_grad=True)
    style = _activation(1, 6, 2, 1, seed=1).float().requires_grad_()
    moments = [Moments.of(x, full=True) for x in (content, style)]
    transport(content, moments[0], moments[1], method).square().sum().backward()
    for x in (content, style):
        assert x.grad is not None
        assert x.grad.isfinite().all()


# barycentres


def _gaussians(number: int, seed: int = 0, channels: int = 4) -> list[Moments]:
    return [
        Moments.of(_activation(1, channels, 6, 6, seed=seed + i) * (1 + i), full=True)
        for i in range(number)
    ]


@settings(max_examples=20)
@given(seed=seeds, weight=st.floats(0, 1))
def test_the_barycenter_of_two_is_in_closed_form(seed: int, weight: float) -> None:
    first, second = _gaussians(2, seed)
    got = barycenter([first, second], [weight, 1 - weight])
    a, b = _cov(first), _cov(second)
    step = weight * np.eye(4) + (1 - weight) * _optimal(a, b)
    np.testing.assert_allclose(_cov(got), step @ a @ step, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.mean, weight * first.mean + (1 - weight) * second.mean)
    np.testing.assert_array_equal(got.var[0], _cov(got).diagonal())


@settings(max_examples=10)
@given(seed=seeds, weights=st.lists(st.floats(0.1, 1), min_size=3, max_size=4))
def test_the_maps_from_the_barycenter_average_to_the_identity(
    seed: int, weights: list[float]
) -> None:
    parts = _gaussians(len(weights), seed)
    got = _cov(barycenter(parts, weights, eps=1e-9))
    share = np.array(weights) / sum(weights)
    average = sum(w * _optimal(got, _cov(p)) for w, p in zip(share, parts, strict=True))
    np.testing.assert_allclose(average, np.eye(4), atol=1e-4)


def test_averaging_the_maps_misses_the_barycenter() -> None:
    parts = _gaussians(3)
    want = _cov(barycenter(parts, [1, 1, 1]))
    maps = [transport_matrix(parts[0], part, "ot")[0].numpy() for part in parts]
    step = sum(maps) / 3
    naive = step @ _cov(parts[0]) @ step
    assert np.linalg.norm(naive - want) > 0.01 * np.linalg.norm(want)


def test_two_of_three_weights_give_the_barycenter_of_two() -> None:
    parts = _gaussians(3)
    want = barycenter(parts[:2], [0.3, 0.7])
    got = barycenter(parts, [0.3, 0.7, 0.0])
    torch.testing.assert_close(got.cov, want.cov, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_barycenter_of_one_and_the_same_is_it(number: int) -> None:
    (part,) = _gaussians(1)
    got = barycenter([part] * number, [1.0] * number)
    torch.testing.assert_close(got.cov, part.cov)
    torch.testing.assert_close(got.mean, part.mean)


@pytest.mark.parametrize("number", [2, 3])
def test_the_barycenter_of_diagonals_mixes_deviations(number: int) -> None:
    parts = [
        Moments(p.count, p.mean, p.var, p.var.diag_embed(), INSTANCE) for p in _gaussians(number)
    ]
    weights = [0.2, 0.3, 0.5][:number]
    got, want = barycenter(parts, weights), mix(parts, weights, "std")
    torch.testing.assert_close(got.var, want.var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.mean, want.mean)
    np.testing.assert_allclose(_cov(got), np.diag(_cov(got).diagonal()), atol=1e-9)


def test_the_barycenter_of_rank_deficient_float32_styles() -> None:
    parts = [Moments.of(_activation(1, 8, 2, 2, seed=s).float(), full=True) for s in range(3)]
    got = barycenter(parts, [1, 1, 1])
    assert got.cov is not None
    assert got.cov.dtype == torch.float32
    assert got.cov.isfinite().all()
    assert torch.linalg.eigvalsh(got.cov.double()).min() > -1e-5


def test_what_has_no_barycenter() -> None:
    parts = _gaussians(2)
    with pytest.raises(InputError, match="1 weights for 2 parts"):
        barycenter(parts, [1.0])
    with pytest.raises(InputError, match="diagonal"):
        barycenter([part.diagonal() for part in parts], [1, 1])
    with pytest.raises(InputError, match="do not fit together"):
        barycenter([parts[0], _gaussians(1, channels=3)[0]], [1, 1])
