from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are scripts, not a package: import them as they import each other."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_a_section_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    from results import write_section

    file = tmp_path / "RESULTS.md"
    file.write_text("# Results\n\nAbout.\n")
    write_section("speed", "## Speed\n\n1.0 s", file)
    write_section("quality", "## Quality\n\n0.5", file)
    first = file.read_text()
    assert first.startswith("# Results\n\nAbout.\n\n<!-- speed: begin -->\n## Speed\n\n1.0 s\n<!--")
    write_section("speed", r"## Speed  \1", file)
    write_section("speed", r"## Speed  \1", file)
    assert file.read_text() == first.replace("## Speed\n\n1.0 s", r"## Speed  \1")


def test_a_table_has_a_cell_for_each_column() -> None:
    from results import table

    lines = table(["method", "s"], [["ours", "0.1"], ["theirs", "0.5"]]).splitlines()
    assert lines == ["| method | s |", "| --- | ---: |", "| ours | 0.1 |", "| theirs | 0.5 |"]


def test_results_say_where_and_of_what_they_are() -> None:
    import torch
    from results import conditions

    line = conditions(["torch", "no-such-package"])
    assert f"torch {version('torch')}" in line
    assert "no-such-package missing" in line
    assert f"{torch.get_num_threads()} threads; commit " in line


@pytest.mark.shared
def test_microast_is_the_published_network(
    shared_dir: Path, astronaut: np.ndarray, coffee: np.ndarray
) -> None:
    import torch
    from microast import MicroAST

    network = MicroAST(shared_dir / "weights" / "microast")
    assert sum(parameter.numel() for parameter in network.parameters()) == 471_987
    photo, style = (
        torch.from_numpy(pixels[:256, :256]).permute(2, 0, 1)[None] / 255
        for pixels in (astronaut, coffee)
    )
    painted = network(photo, network.signals(style))
    assert painted.shape == photo.shape
    assert (painted.mean((2, 3)) - style.mean((2, 3))).abs().max() < 0.15
    greys = torch.stack([image.mean(1).flatten() for image in (painted, photo)])
    assert torch.corrcoef(greys)[0, 1] > 0.6


def test_an_unknown_peer_is_refused_with_the_nearest_name() -> None:
    from peers import load_peer

    from normapps.errors import InputError

    with pytest.raises(InputError, match="unknown method 'MicroAts'; did you mean 'MicroAST'"):
        load_peer("MicroAts")
