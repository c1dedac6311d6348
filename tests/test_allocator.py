"""Freed memory is kept, and only where nobody else tunes malloc."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from normapps.allocator import _Holders, freed_memory_kept, keep_freed_memory, keep_little

_FAULTS = """
import resource, sys
from normapps.allocator import keep_freed_memory
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


_LITTLE = """
import resource, sys
from normapps.allocator import freed_memory_kept, keep_little
import numpy
def faults(mib):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [numpy.ones(mib << 17) for _ in range(5)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(1)
before = faults(8)
assert keep_little()
faults(8)
found = faults(8), faults(40)
with freed_memory_kept():
    assert keep_little()
    faults(40)
    print(before, *found, faults(40))
"""


_SCOPE = """
import resource
from normapps.allocator import freed_memory_kept, keep_freed_memory
import numpy
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        numpy.ones(8_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
found = [faults()]
numpy.ones(8_000_000)
empty = resident()
with freed_memory_kept():
    numpy.ones(8_000_000)
    with freed_memory_kept():
        pass
    found.append(faults())
    full = resident()
found += [full - empty, resident() - empty, faults()]
keep_freed_memory()
with freed_memory_kept():
    numpy.ones(8_000_000)
print(*found, faults())
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_little_is_kept_and_no_more() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run(
        [sys.executable, "-c", _LITTLE], env=clean, capture_output=True, text=True, check=True
    ).stdout.split()
    before, little, much, inside = (int(word) for word in said)
    assert little < before / 10
    assert much > before / 2
    assert inside < much / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_block_keeps_memory_to_its_end_and_no_longer() -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run(
        [sys.executable, "-c", _SCOPE], env=clean, capture_output=True, text=True, check=True
    ).stdout.split()
    before, inside, held, left, after, for_good = (int(word) for word in said)
    assert inside < before / 10
    assert held > 60_000_000
    assert left < 10_000_000
    assert after > before / 2
    assert for_good < before / 10


def test_a_block_gives_back_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    trimmed: list[int] = []

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            told.append((name, value))
            return 1

        def malloc_trim(self, pad: int) -> int:
            trimmed.append(pad)
            return 1

    monkeypatch.setattr("normapps.allocator._glibc", Library)
    monkeypatch.setattr("normapps.allocator._holders", _Holders())

    def failing() -> None:
        with freed_memory_kept():
            assert told == [(-4, 0), (-1, 2**31 - 1)]
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert trimmed == [0]
    assert (-4, 65536) in told


def test_a_users_own_tuning_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
    assert not keep_little()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
