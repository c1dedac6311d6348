"""Freed memory is kept, and only where nobody else tunes malloc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from normapps.engine.allocator import keep_freed_memory

_FAULTS = """
import resource, sys
from normapps.engine.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert "torch" not in sys.modules
import numpy
numpy.ones(8_000_000)
before = faults()
for _ in range(5):
    numpy.ones(8_000_000)
print(int(kept), faults() - before)
"""


def _run(word: str, **environment: str) -> tuple[int, int]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run(
        [sys.executable, "-c", _FAULTS, word],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return int(said[0]), int(said[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    kept, faults = _run("keep")
    _, usual = _run("leave")
    assert kept
    assert usual > 1000
    assert faults < usual / 10


def test_a_users_own_tuning_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
