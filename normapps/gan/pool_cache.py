"""Decoded pictures in a file, so that a run that goes on need not decode them again."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ..data.pool import Pool
from ..errors import InputError
from ..files import atomic_path


def save_pool(pool: Pool, path: Path, key: str) -> None:
    """Write a pool.

    Args:
        pool: the pictures.
        path: safetensors file to write.
        key: what the pool was made of; `load_pool` asks for it.

    Raises:
        InputError: the file cannot be written, such as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    told = {"classes": pool.classes, "failed": pool.failed, "notes": pool.notes}
    tensors = {"images": pool.images.contiguous()}
    if pool.labels is not None:
        tensors["labels"] = pool.labels
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"key": key, "pool": json.dumps(told)})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({error}); free some space") from error


def load_pool(path: Path, key: str) -> Pool | None:
    """Read a pool that was made of the same; None where the file has another, or none whole."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata() or {}
            if known.get("key") != key:
                return None
            told = json.loads(known["pool"])
            names = set(file.keys())
            labels = file.get_tensor("labels") if "labels" in names else None
            images: torch.Tensor = file.get_tensor("images")
            return Pool(images, labels, told["classes"], told["failed"], told["notes"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None  # a cache that is damaged is none; it is written anew
