"""Switchable whitening: the mixed covariance in numpy, and its corners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normapps.errors import InputError
from normapps.graph.fold import fold_batchnorm
from normapps.norm.layers.switchable_whitening import KINDS, SwitchableWhitening
from normapps.norm.layers.whitening import IterNorm

SHAPE = (3, 8, 5, 4)


def _layer(kinds: tuple[str, ...], **options: float) -> SwitchableWhitening:
    torch.manual_seed(0)
    layer = SwitchableWhitening(8, kinds=kinds, group_size=4, **options).double()  # type: ignore[arg-type]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def _input(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64).cumsum(1)
    return x * torch.tensor([1.0, 2.0, 0.5]).double().reshape(-1, 1, 1, 1) + 1


def _newton(cov: np.ndarray) -> np.ndarray:
    scaled, power = cov / np.trace(cov), np.eye(len(cov))
    for _ in range(5):
        power = (3 * power - power @ power @ power @ scaled) / 2
    return power / np.sqrt(np.trace(cov))


def _softmax(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.detach().numpy())
    return powers / powers.sum()


def _expected(
    layer: SwitchableWhitening, x: np.ndarray, batch: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Sample by sample and group by group; `batch` has the means and covariances to use."""
    y = np.empty_like(x)
    for n, sample in enumerate(x):
        for group, (batch_mean, batch_cov) in enumerate(batch):
            part = slice(4 * group, 4 * group + 4)
            rows = sample[part].reshape(4, -1)
            own_mean, own_cov = rows.mean(1), np.cov(rows, bias=True)
            means = {"bw": batch_mean, "bn": batch_mean, "iw": own_mean, "in": own_mean}
            covs = {"bw": batch_cov, "iw": own_cov}
            covs |= {"bn": np.diag(np.diag(batch_cov)), "in": np.diag(np.diag(own_cov))}
            means["ln"], covs["ln"] = np.full(4, sample.mean()), np.eye(4) * sample.var()
            pairs = zip(layer.kinds, _softmax(layer.mean_weight), strict=True)
            mean = sum(share * means[kind] for kind, share in pairs)
            pairs = zip(layer.kinds, _softmax(layer.cov_weight), strict=True)
            cov = sum(share * covs[kind] for kind, share in pairs)
            white = _newton(cov + layer.eps * np.eye(4)) @ (rows - mean[:, None])
            y[n, part] = white.reshape(4, *SHAPE[2:])
    weight, bias = (each.detach().numpy().reshape(-1, 1, 1) for each in (layer.weight, layer.bias))
    return y * weight + bias


def _moments(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = x.transpose(1, 0, 2, 3).reshape(8, -1)
    return [(part.mean(1), np.cov(part, bias=True)) for part in (rows[:4], rows[4:])]


@pytest.mark.parametrize("kinds", [("bw", "iw"), ("bw", "iw", "ln"), KINDS])
def test_values(kinds: tuple[str, ...]) -> None:
    layer, x = _layer(kinds, momentum=0.3), _input()
    batch = _moments(x.numpy())
    want = _expected(layer, x.numpy(), batch)
    np.testing.assert_allclose(layer(x).detach(), want, atol=1e-9)
    running = [(0.3 * mean, 0.7 * np.eye(4) + 0.3 * cov) for mean, cov in batch]
    np.testing.assert_allclose(layer.running_cov, [cov for _, cov in running], atol=1e-12)
    other = _input(1)
    want = _expected(layer, other.numpy(), running)
    np.testing.assert_allclose(layer.eval()(other).detach(), want, atol=1e-9)


def test_with_all_the_weight_on_the_batch_it_is_iternorm() -> None:
    layer, theirs = _layer(("bw", "iw")), IterNorm(8, group_size=4).double()
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.cov_weight):
            logits.copy_(torch.tensor([1e4, 0.0]))
    theirs.load_state_dict(layer.state_dict(), strict=False)
    for training in (True, False):
        found = layer.train(training)(_input())
        torch.testing.assert_close(found, theirs.train(training)(_input()))


def test_it_is_no_fixed_map_and_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), SwitchableWhitening(8, layout="2d"))
    x = torch.randn(8, 3, 4, 4)
    model(x)
    folded, report = fold_batchnorm(model.eval(), x)
    assert report.left == (("1", "measures each input at inference, too"),)
    torch.testing.assert_close(folded(x), model(x))
    with pytest.raises(InputError, match="cannot be folded"):
        model[1].fold()


@pytest.mark.parametrize("kinds", [("bw",), ("bw", "bw"), "iw"])
def test_fewer_than_two_kinds_are_refused(kinds: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="kind"):
        SwitchableWhitening(8, kinds=kinds)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="unknown kind of moments 'bm'; known: bn, bw"):
        SwitchableWhitening(8, kinds=("bm", "iw"))
