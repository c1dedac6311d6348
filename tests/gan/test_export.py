"""Exported generators and discriminators: onnxruntime and torch.export draw what torch does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from normapps.errors import InputError, UsageError
from normapps.gan.export import export_discriminator, export_generator
from normapps.gan.opening import open_generator
from normapps.gan.pages import grid
from normapps.gan.run import open_run
from normapps.gan.sample_options import GanExportOptions
from normapps.gan.sampling import latents, sample

sys.path.insert(0, str(Path(__file__).parent))
from gan_runs import make_generator, make_run


def _grid(drawn: np.ndarray) -> np.ndarray:
    """What is drawn in [−1, 1] as the metadata tells, in one page."""
    return np.asarray(grid(torch.from_numpy(np.minimum(np.floor(128 * (drawn + 1)), 255)).byte()))


@pytest.mark.parametrize("classes", [(), ("bag", "boot")])
def test_onnx_draws_the_same_grid(tmp_path: Path, classes: tuple[str, ...]) -> None:
    folder = make_generator(tmp_path / "g", classes)
    report = export_generator(folder, tmp_path / "g.onnx", GanExportOptions(standing=32))
    assert report.output == (None, 1, 28, 28)
    assert report.inputs == {"z": (None, 6)} | ({"y": (None,)} if classes else {})
    assert report.difference < 1e-4
    assert report.folded == (0 if classes else 2)
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx")
    assert [each.name for each in session.get_inputs()] == (["z", "y"] if classes else ["z"])
    opened = open_generator(folder)
    opened.use_("standing", standing=32)
    for count in (1, 7):
        z = latents(range(count), 6)
        y = torch.arange(count) % 2 if classes else None
        (drawn,) = session.run(None, {"z": z.numpy()} | ({} if y is None else {"y": y.numpy()}))
        wanted = np.asarray(grid(sample(opened.generator, z, y)))
        # one step of 255 where rounding falls on either side of a whole number
        assert np.abs(_grid(drawn).astype(int) - wanted).max() <= 1
        assert (_grid(drawn) != wanted).mean() < 0.01
    _check_metadata(tmp_path / "g.onnx", classes)


def _check_metadata(path: Path, classes: tuple[str, ...]) -> None:
    told = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert told["range"] == "[-1, 1]"
    assert tuple(json.loads(told["classes"])) == classes
    assert told["statistics"] == "standing statistics of 32 latents"


def test_the_statistics_are_the_ones_asked_for(tmp_path: Path) -> None:
    folder = make_generator(tmp_path / "g")
    z = latents(range(3), 6)
    for bn in ("standing", "running"):
        export_generator(folder, tmp_path / f"{bn}.pt2", GanExportOptions(bn=bn))
        opened = open_generator(folder)
        opened.use_(bn)
        program = torch.export.load(tmp_path / f"{bn}.pt2").module()
        with torch.no_grad():
            assert torch.allclose(program(z), opened.generator(z), atol=1e-4)
            other = make_other(opened.generator, z)
        assert not torch.allclose(program(z), other, atol=1e-3)


def make_other(generator: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    """What the generator draws with statistics that are neither of the two."""
    from normapps.gan.sampling import standing_

    with standing_(generator, 16, seed=99):
        drawn: torch.Tensor = generator(z)
    return drawn


def test_a_discriminator_is_written_as_onnx(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", d_norm="sn")
    export_discriminator(run, tmp_path / "d.onnx")
    x = _pictures(5)
    (found,) = onnxruntime.InferenceSession(tmp_path / "d.onnx").run(None, {"x": x.numpy()})
    with torch.no_grad():
        wanted = open_run(run).discriminator()(x)
    assert np.allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_discriminator_of_classes_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ("bag", "boot"), d_norm="ws")
    export_discriminator(run, tmp_path / "d.pt2")
    x, y = _pictures(5), torch.arange(5) % 2
    with torch.no_grad():
        found = torch.export.load(tmp_path / "d.pt2").module()(x, y)
        assert torch.allclose(found, open_run(run).discriminator()(x, y), rtol=1e-4, atol=1e-5)


def _pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.onnx or \.pt2"):
        export_generator("nothing", tmp_path / "g.bin")
    with pytest.raises(UsageError, match=r"--opset 18: .*is no ONNX"):
        export_generator("nothing", tmp_path / "g.pt2", GanExportOptions(opset=18))
    (tmp_path / "g.pt2").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        export_generator("nothing", tmp_path / "g.pt2")
    run = make_run(tmp_path / "run", d_norm="gn")
    with pytest.raises(InputError, match="--d-norm gn; a gradient is part of its logits"):
        export_discriminator(run, tmp_path / "d.onnx")
    assert not (tmp_path / "d.onnx").exists()
