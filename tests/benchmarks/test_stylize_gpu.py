"""The timing of a GPU, on a CPU: all ways to run draw the same, and what was measured stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_every_way_to_run_our_network_draws_the_same_pictures() -> None:
    from stylize_gpu import VARIANTS, _noise

    device = torch.device("cpu")
    images = _noise((2, 3, 32, 40), device)
    ours = [name for name in VARIANTS if name.startswith("normapps") and "compile" not in name]
    with torch.inference_mode():
        want = VARIANTS[ours[0]]("adain-tiny", device)(images)
        assert want.dtype == torch.uint8
        assert want.shape == images.shape
        for name in ours[1:]:
            difference = (VARIANTS[name]("adain-tiny", device)(images).int() - want.int()).abs()
            assert difference.float().mean() < 3
        peer = VARIANTS["MicroAST"]("adain-tiny", device)(images)
    assert peer.shape == images.shape


def test_a_call_goes_on_where_the_last_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import stylize_gpu

    tried: list[tuple[str, str, int]] = []

    def measure(variant: str, size: str, batch: int, options: object) -> dict[str, object]:
        tried.append((variant, size, batch))
        if len(tried) == 3:
            raise KeyboardInterrupt
        if batch == 16:
            return {"reason": "out of memory"}
        return {"seconds": 0.004 if variant == "MicroAST" else 0.001, "bytes": 5e6, "megapixels": 1}

    monkeypatch.setattr(stylize_gpu, "_measure", measure)
    state = tmp_path / "state.json"
    words = ["x", "--sizes", "512x512", "--variants", "normapps", "MicroAST", "--dry-run"]
    monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu", "--state", str(state)])
    with pytest.raises(KeyboardInterrupt):
        stylize_gpu.main()
    assert len(json.loads(state.read_text())) == 2
    stylize_gpu.main()
    assert len(tried) == 3 + 2
    lines = capsys.readouterr().out.splitlines()
    assert "| 512×512 | 1 | normapps | 1.00 | 1000 | 5 MB |" in lines
    assert "| 512×512 | 16 | MicroAST | out of memory |  |  |" in lines
    assert "- 512×512, batch 1: 4.00 × as fast as MicroAST" in lines
    assert not any("batch 16:" in line for line in lines)


def test_a_batch_is_timed_by_the_megapixels_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stylize_gpu

    monkeypatch.setattr(stylize_gpu, "ROUND_SECONDS", 1e-3)
    words = ["x", "--sizes", "32x16", "--batches", "3", "--variants", "MicroAST", "--repeats", "2"]
    monkeypatch.setattr(
        sys, "argv", [*words, "--device", "cpu", "--dry-run", "--state", str(tmp_path / "s.json")]
    )
    stylize_gpu.main()
    (got,) = json.loads((tmp_path / "s.json").read_text()).values()
    assert got["megapixels"] == pytest.approx(3 * 32 * 16 / 1e6)
    assert got["seconds"] > 0
