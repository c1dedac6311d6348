"""The peak of memory: it rises with what is held, and is the kernel's."""

from __future__ import annotations

import torch

from normapps.measure.memory import peak_bytes, peak_device_bytes


def test_the_peak_rises_by_what_is_held_and_stays() -> None:
    before = peak_bytes()
    assert before > 50_000_000  # torch alone is more
    held = torch.ones(before // 4 + 50_000_000)  # float32: more than was ever there
    assert peak_bytes() > before + 40_000_000
    del held
    assert peak_bytes() > before + 40_000_000


def test_a_processor_has_no_memory_of_its_own() -> None:
    assert peak_device_bytes(torch.device("cpu")) is None
