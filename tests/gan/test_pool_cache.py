"""The file of decoded pictures: what comes back, and that a damaged one is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.gan.pool_cache import load_pool, save_pool


def pool(labelled: bool = True) -> Pool:
    images = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).reshape(4, 3, 2, 2)
    if not labelled:
        return Pool(images[:, :1])
    return Pool(images, torch.tensor([0, 1, 1, 0]), ("ä", "b"), ("x.png: damaged",), ("a note",))


@pytest.mark.parametrize("labelled", [True, False])
def test_what_was_saved_is_loaded(tmp_path: Path, labelled: bool) -> None:
    saved = pool(labelled)
    save_pool(saved, tmp_path / "pool.safetensors", "key")
    found = load_pool(tmp_path / "pool.safetensors", "key")
    assert found is not None
    assert torch.equal(found.images, saved.images)
    assert (found.labels is None) == (not labelled)
    if labelled:
        assert found.labels is not None
        assert saved.labels is not None
        assert torch.equal(found.labels, saved.labels)
    assert (found.classes, found.failed, found.notes) == (saved.classes, saved.failed, saved.notes)


def test_another_key_or_a_damaged_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "pool.safetensors"
    assert load_pool(path, "key") is None
    save_pool(pool(), path, "key")
    assert load_pool(path, "other") is None
    whole = path.read_bytes()
    for data in (b"", whole[:20], whole[:-1], whole.replace(b'"key"', b'"yek"')):
        path.write_bytes(data)
        assert load_pool(path, "key") is None


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match=r"pool\.safetensors: cannot be written .*No space left"):
        save_pool(pool(), tmp_path / "pool.safetensors", "key")
    assert list(tmp_path.iterdir()) == []
