"""PCA whitening against numpy's eigenvectors, and what is peculiar to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from normapps.graph.fold import fold_batchnorm
from normapps.norm.layers.pca import PCANorm


def _input(seed: int = 0) -> Tensor:
    """Correlated features of unlike variances."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor(
        [[3.0, 0.2, 0.0, 0.0], [0.5, 1.0, 0, 0], [0, 0, 2.0, 0.3], [0, 0, 0, 0.4]]
    )
    x = torch.randn(20, 4, 6, generator=generator, dtype=torch.float64)
    return torch.einsum("cd,nds->ncs", mixing.double(), x) + 1


def _expected(x: np.ndarray, mean: np.ndarray, covs: np.ndarray, eps: float) -> np.ndarray:
    parts = []
    for index, cov in enumerate(covs):
        values, vectors = np.linalg.eigh(cov + eps * np.eye(2))
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(2)])
        rows = x[2 * index : 2 * index + 2] - mean[2 * index : 2 * index + 2, None]
        parts.append(np.diag(values**-0.5) @ vectors.T @ rows)
    return np.concatenate(parts)


def _rows(x: Tensor) -> np.ndarray:
    return x.detach().transpose(0, 1).reshape(x.shape[1], -1).numpy()


def test_training_and_inference_are_the_formula() -> None:
    layer = PCANorm(4, momentum=None, group_size=2).double()
    mean, covs = np.zeros(4), np.zeros((2, 2, 2))
    for step in range(3):
        rows = _rows(_input(step))
        batch = np.stack([np.cov(rows[:2], bias=True), np.cov(rows[2:], bias=True)])
        want = _expected(rows, rows.mean(1), batch, layer.eps)
        np.testing.assert_allclose(_rows(layer(_input(step))), want, atol=1e-9)
        mean, covs = mean + rows.mean(1) / 3, covs + batch / 3
    want = _expected(rows, mean, covs, layer.eps)
    np.testing.assert_allclose(_rows(layer.eval()(_input(2))), want, atol=1e-9)


def test_axes_are_the_same_from_batch_to_batch() -> None:
    layer = PCANorm(4, group_size=2).double()
    one, other = (
        layer.whitening(layer.measure(_input(seed), layer.partition())) for seed in (0, 1)
    )
    for row, same in zip(one.reshape(4, 2), other.reshape(4, 2), strict=True):
        assert torch.cosine_similarity(row, same, 0) > 0.9


def test_gradients_are_finite_where_variances_agree() -> None:
    layer = PCANorm(4, group_size=4)
    x = torch.randn(8, 4, 5)
    x[:, 2:] = 0  # two channels that are dead alike
    x.requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_it_folds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), PCANorm(4, layout="2d"))
    x = torch.randn(16, 3, 8, 8)
    model(x)
    folded, report = fold_batchnorm(model.eval(), x)
    assert len(report.folded) == 1
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
