"""Normalized inputs against numpy over the whole set at once, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.norm import BATCH, InputNorm, Moments
from normapps.norm.inputs import METHODS

EPS = 1e-3
C, H, W = 3, 2, 4
SHAPES = {"channel": C, "feature": C * H * W}
every_method = pytest.mark.parametrize("method", METHODS)


def _images(n: int = 60) -> Tensor:
    """Correlated channels and positions, (n, C, H, W), of a mean far from 0."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(n, C * H * W, generator=generator)
    mixing = torch.randn(C * H * W, C * H * W, generator=generator)
    return (flat @ mixing + 20).reshape(n, C, H, W)


def _fitted(method: str, per: str, *, eps: float = EPS) -> InputNorm:
    return InputNorm(SHAPES[per], method, per=per, eps=eps).fit(_images().split((1, 20, 7, 32)))


def _rows(x: Tensor, per: str) -> np.ndarray[Any, Any]:
    """Samples of D dimensions, (M, D)."""
    flat = x.flatten(1) if per == "feature" else x.movedim(1, -1).flatten(0, -2)
    return flat.double().numpy()


@every_method
@pytest.mark.parametrize("per", SHAPES)
def test_what_comes_out_has_the_wanted_moments(method: str, per: str) -> None:
    x = _images()
    y = _fitted(method, per)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    before, after = _rows(x, per), _rows(y, per)
    sigma = np.cov(before.T, bias=True)
    variances = np.diag(sigma)
    np.testing.assert_allclose(after.mean(0), 0, atol=1e-4)
    found = np.cov(after.T, bias=True)
    if method == "center":
        np.testing.assert_allclose(found, sigma, rtol=1e-4, atol=1e-3)
    elif method == "standardize":
        scale = 1 / np.sqrt(variances + EPS)
        np.testing.assert_allclose(found, sigma * np.outer(scale, scale), rtol=1e-3, atol=1e-4)
    else:
        values = np.linalg.eigvalsh(sigma)
        wanted = np.sort(values / (values + EPS))
        np.testing.assert_allclose(np.linalg.eigvalsh(found), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("per", SHAPES)
def test_whitening_is_symmetric_or_in_the_order_of_variances(per: str) -> None:
    sigma = np.cov(_rows(_images(), per).T, bias=True)
    values, vectors = np.linalg.eigh(sigma)
    zca = (vectors / np.sqrt(values + EPS)) @ vectors.T
    np.testing.assert_allclose(_fitted("zca", per).matrix, zca, rtol=1e-4, atol=1e-4)
    pca = _fitted("pca", per).matrix.double().numpy()
    gains = np.linalg.norm(pca, axis=1)
    np.testing.assert_allclose(gains, 1 / np.sqrt(values[::-1] + EPS), rtol=1e-4)
    assert (np.diff(gains) > 0).all()


@settings(max_examples=10)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_how_the_set_is_cut_does_not_matter(sizes: list[int]) -> None:
    x = _images(sum(sizes))
    cut = InputNorm(C, "zca").fit([part] for part in x.split(sizes))
    whole = InputNorm(C, "zca").fit([x])
    torch.testing.assert_close(cut.mean, whole.mean)
    torch.testing.assert_close(cut.matrix, whole.matrix)


def test_a_large_mean_costs_no_variance() -> None:
    """E[x²] − E[x]² in float32 would be 0 or negative here."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 4000
    y = InputNorm(2, eps=0.0).fit(x.split(9))(x)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2), rtol=1e-3, atol=0)


def test_moments_are_exact_to_the_last_bit_of_float32() -> None:
    """Sums in float32 would round at each of the batches."""
    x = torch.randn(900, 40, generator=torch.Generator().manual_seed(0)) + 100
    norm = InputNorm(40, eps=0.0).fit(x.split(9))
    assert torch.equal(norm.mean, x.double().mean(0).float())
    assert torch.equal(norm.scale, x.double().var(0, correction=0).rsqrt().float())


@pytest.mark.parametrize("method", ["standardize", "zca", "pca"])
def test_what_never_varies_is_centred_only(method: str) -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0.7
    norm = InputNorm(4, method).fit([x])
    new = x[:1].clone()
    new[0, 2] = 1.7
    moved = norm(new) - norm(x[:1])
    torch.testing.assert_close(moved.abs().sum(), torch.tensor(1.0), rtol=1e-4, atol=1e-4)


def test_moments_of_several_machines() -> None:
    x = _images()
    parts = [Moments.of(part, BATCH, full=True) for part in x.double().split(25)]
    merged = InputNorm(C, "zca", eps=EPS).set_(parts[0].merge(*parts[1:]))
    torch.testing.assert_close(merged.matrix, _fitted("zca", "channel").matrix)
    with pytest.raises(InputError, match="'zca' needs the covariance"):
        InputNorm(C, "zca").set_(parts[0].diagonal())
    with pytest.raises(InputError, match=r"moments of \(1, 3\): must be \(1, 4\)"):
        InputNorm(4).set_(parts[0])


@every_method
def test_a_file_and_a_state_dict_bring_it_back(method: str, tmp_path: Path) -> None:
    norm, x = _fitted(method, "feature"), _images()
    norm.save(tmp_path / "inputs.safetensors")
    loaded = InputNorm.load(tmp_path / "inputs.safetensors")
    assert torch.equal(loaded(x), norm(x))
    assert repr(loaded) == repr(norm)
    with pytest.raises(InputError, match="exists already"):
        norm.save(tmp_path / "inputs.safetensors")
    fresh = InputNorm(C * H * W, method, per="feature")
    fresh.load_state_dict(norm.state_dict())
    assert torch.equal(fresh(x), norm(x))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        InputNorm.load(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(InputError, match="damaged; fit and save"):
        InputNorm.load(tmp_path / "damaged.safetensors")
    save_file({"mean": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a normalization of inputs"):
        InputNorm.load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="knows no data set yet"):
        InputNorm(3).save(tmp_path / "new.safetensors")


LAYERS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(C, 4, 2),
    "without bias": nn.Conv2d(C, 4, 2, bias=False),
    "depthwise": nn.Conv2d(C, 6, 2, groups=C),
    "replicate": nn.Conv2d(C, 4, 3, padding=1, padding_mode="replicate"),
    "padding 'valid'": nn.Conv2d(C, 4, 2, padding="valid"),
}


@every_method
@pytest.mark.parametrize("kind", LAYERS)
def test_it_folds_into_a_first_convolution(method: str, kind: str) -> None:
    norm, layer, x = _fitted(method, "channel", eps=0.1), LAYERS[kind], _images()
    if norm.whitens and kind == "depthwise":
        with pytest.raises(InputError, match="its 3 groups would be mixed"):
            norm.fold(layer)
        return
    expected = layer(norm(x))
    torch.testing.assert_close(norm.fold(layer)(x), expected, rtol=1e-3, atol=1e-3)


@every_method
def test_it_folds_into_a_first_linear_layer(method: str) -> None:
    norm, layer, x = _fitted(method, "feature", eps=0.1), nn.Linear(C * H * W, 5), _images()
    folded = norm.fold(layer)
    torch.testing.assert_close(
        folded(x.flatten(1)), layer(norm(x).flatten(1)), rtol=1e-3, atol=1e-3
    )
    assert folded is not layer


def test_what_would_not_be_exact_is_not_folded() -> None:
    channel, feature = _fitted("center", "channel"), _fitted("center", "feature")
    cases = (
        (channel, nn.Conv2d(C, 4, 3, padding=1), "pads with zeros"),
        (channel, nn.Conv2d(C, 4, 3, padding="same"), "pads with zeros"),
        (channel, nn.Linear(7, 2), "takes 7, not 3"),
        (channel, nn.ConvTranspose2d(C, 4, 2), "neither linear nor a convolution"),
        (channel, nn.utils.parametrizations.weight_norm(nn.Conv2d(C, 4, 2)), "parametrized"),
        (feature, nn.Conv2d(C, 4, 2), "each position has moments of its own"),
        (InputNorm(C), nn.Conv2d(C, 4, 2), "nothing was fitted"),
    )
    for norm, layer, reason in cases:
        with pytest.raises(InputError, match=reason) as error:
            norm.fold(layer)
        assert "\n" not in str(error.value)


def test_bad_inputs_are_refused() -> None:
    x = _images()
    x[40, 1, 0, 0] = float("nan")
    with pytest.raises(InputError, match="batch 2 of the inputs has NaN or infinity"):
        InputNorm(C).fit(x.split(20))
    with pytest.raises(InputError, match="no inputs to measure"):
        InputNorm(C).fit([])
    with pytest.raises(InputError, match=r"must be floating \(N, C, ...\) with 4 channels"):
        InputNorm(4).fit([x])
    with pytest.raises(InputError, match=r"torch\.uint8"):
        InputNorm(C).fit([x.to(torch.uint8)])
    with pytest.raises(InputError, match=r"call fit\(batches\)"):
        InputNorm(C)(x)
    for option in ({"method": "zcb"}, {"per": "pixel"}, {"eps": -1.0}):
        with pytest.raises(InputError):
            InputNorm(C, **option)


def test_one_program_for_all_sizes_of_a_batch() -> None:
    norm, x = _fitted("zca", "channel"), _images()
    batch = torch.export.Dim("N", min=2, max=99)
    program = torch.export.export(norm, (x[:4],), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(x), norm(x))
    assert norm(x[:0]).shape == (0, C, H, W)
    assert norm(x.half()).dtype == torch.half


@every_method
def test_inputs_of_another_dtype_than_the_module(method: str) -> None:
    norm, x = _fitted(method, "channel"), _images()
    assert norm(x.double()).dtype == torch.double
    torch.testing.assert_close(norm(x.double()).float(), norm(x), rtol=1e-3, atol=1e-4)
    assert norm.half()(x).dtype == torch.float
