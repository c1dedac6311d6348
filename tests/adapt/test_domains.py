"""Domains of an evaluation: the bytes of `corrupt`, whoever asks, and room that is kept to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normapps.adapt import domains as module
from normapps.adapt.domains import Domains
from normapps.data.corruptions import corrupt
from normapps.data.pool import Pool


@pytest.fixture
def pool() -> Pool:
    drawn = np.random.default_rng(0).integers(0, 256, (6, 3, 12, 10), np.uint8)
    return Pool(torch.from_numpy(drawn))


def test_pictures_are_corrupted_by_seed_and_index(pool: Pool) -> None:
    found = Domains(pool).images("gaussian_noise:4", 7, torch.tensor([5, 0, 5]))
    for image, index in zip(found, (5, 0, 5), strict=True):
        plain = pool.images[index].permute(1, 2, 0).numpy()
        wanted = corrupt(plain, "gaussian_noise", 4, (7, index))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), wanted)


def test_clean_is_the_pool(pool: Pool) -> None:
    indices = torch.tensor([3, 1])
    assert torch.equal(Domains(pool).images("clean", 0, indices), pool.images[indices])


def test_each_picture_is_corrupted_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def counted(image: np.ndarray, name: str, severity: int, seed: object) -> np.ndarray:
        made.append((name, severity, seed))
        return corrupt(image, name, severity, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "corrupt", counted)
    domains = Domains(pool)
    first = domains.images("contrast:2", 0, torch.arange(4))
    again = domains.images("contrast:2", 0, torch.arange(6))
    assert torch.equal(first, again[:4])
    assert sorted(made) == [("contrast", 2, (0, i)) for i in range(6)]  # type: ignore[type-var]
    domains.images("contrast:2", 1, torch.arange(1))
    assert made[-1] == ("contrast", 2, (1, 0))


def test_no_more_is_kept_than_there_is_room_for(pool: Pool) -> None:
    domains = Domains(pool, max_bytes=2 * pool.images.nbytes)
    first = domains.images("fog:1", 0, torch.arange(6))
    for severity in (2, 3, 4):
        domains.images(f"fog:{severity}", 0, torch.arange(6))
        assert len(domains._kept) <= 2
    assert torch.equal(domains.images("fog:1", 0, torch.arange(6)), first)
    tight = Domains(pool, max_bytes=1)
    assert torch.equal(tight.images("fog:1", 0, torch.arange(6)), first)
