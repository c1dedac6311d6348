"""`normapps gan sample`, `interpolate`, `export`, `inspect`: files, refusals, what is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.main import app
from normapps.errors import InputError
from normapps.gan.opening import open_generator
from normapps.gan.pages import grid
from normapps.gan.sample_options import choose_classes, read_seeds
from normapps.gan.sampling import latents, sample
from normapps.models import shipped

sys.path.insert(0, str(Path(__file__).parent.parent / "gan"))
from gan_runs import make_generator, make_run

NAMES = ("T-shirt/top", "bag")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("gan") / "run", NAMES)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("gan") / "plain")


def _do(*arguments: object) -> Result:
    device = ("--device", "cpu") if arguments[0] in ("sample", "interpolate") else ()
    return CliRunner().invoke(app, ["gan", *map(str, arguments), *device])


def _refused(*arguments: object) -> str:
    result = _do(*arguments)
    assert isinstance(result.exception, Exception)
    assert result.exit_code != 0
    return str(result.exception)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def test_a_grid_has_a_row_a_class(run: Path, tmp_path: Path) -> None:
    given = ("--seeds", "3,0-1", "--scale", 1, "--no-labels")
    done = _do("sample", "-m", run, *given, "-o", tmp_path / "g.png")
    assert done.exit_code == 0
    assert "classes: T-shirt/top, bag" in done.stdout
    assert "6 pictures, standing statistics, 88×58 pixels" in done.stdout
    opened = open_generator(run)
    z = latents([3, 0, 1], 6)
    rows = [sample(opened.generator, z, torch.full((3,), label)) for label in (0, 1)]
    assert np.array_equal(_pixels(tmp_path / "g.png"), np.asarray(grid(torch.cat(rows), 3)))


def test_a_grid_names_its_classes(run: Path, tmp_path: Path) -> None:
    given = ("sample", "-m", run, "--seeds", "0-2", "--columns", 2)
    _do(*given, "-o", tmp_path / "named.png")
    _do(*given, "--no-labels", "-o", tmp_path / "bare.png")
    named, bare = _pixels(tmp_path / "named.png"), _pixels(tmp_path / "bare.png")
    assert bare.shape == (4 * 58 - 2, 2 * 58 - 2)  # each class begins a row
    assert np.all(bare[58:114, 58:] == 255)
    assert np.array_equal(named[:, -bare.shape[1] :], bare)
    margin = named[:, : -bare.shape[1]]
    for rows in (margin[:116], margin[116:]):
        assert rows.min() < 64


def test_cut_off_latents_draw_with_their_own_statistics(run: Path, tmp_path: Path) -> None:
    given = ("--truncation", "0.5", "--standing", 32, "--seeds", "0-1", "--class", "bag")
    done = _do("sample", "-m", run, *given, "--scale", 1, "-o", tmp_path)
    assert "standing statistics of 32 latents, latents cut off at ±0.5" in done.stdout
    opened = open_generator(run)
    opened.use_("standing", standing=32, truncation=0.5)
    wanted = sample(opened.generator, latents([0], 6, 0.5), torch.tensor([1]))[0, 0].numpy()
    assert np.array_equal(_pixels(tmp_path / "seed0000-bag.png"), wanted)
    before = sample(open_generator(run).generator, latents([0], 6, 0.5), torch.tensor([1]))
    assert not np.array_equal(before[0, 0].numpy(), wanted)


def test_files_are_named_by_seed_and_class(run: Path, plain: Path, tmp_path: Path) -> None:
    chosen = ("--class", "T-shirt/top", "--class", "1")
    done = _do("sample", "-m", run, "--seeds", "3,12345,3", *chosen, "-o", f"{tmp_path}/by/")
    assert done.exit_code == 0
    found = sorted(path.name for path in (tmp_path / "by").iterdir())
    assert found == [
        "seed0003-T-shirt_top.png",
        "seed0003-bag.png",
        "seed12345-T-shirt_top.png",
        "seed12345-bag.png",
    ]
    done = _do("sample", "-m", plain, "--seeds", "3", "-o", tmp_path / "one")
    wanted = sample(open_generator(plain).generator, latents([3], 6))[0, 0].numpy()
    assert np.array_equal(_pixels(tmp_path / "one" / "seed0003.png"), wanted)


def test_a_seed_is_the_same_in_a_grid_and_alone(plain: Path, tmp_path: Path) -> None:
    _do("sample", "-m", plain, "--seeds", "0-20", "--scale", 1, "-o", tmp_path / "g.png")
    _do("sample", "-m", plain, "--seeds", "20", "--scale", 1, "-o", tmp_path / "one.png")
    assert np.array_equal(_pixels(tmp_path / "g.png")[-28:, :28], _pixels(tmp_path / "one.png"))


def test_nothing_is_overwritten_unasked(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "seed0002.png").write_bytes(b"mine")
    for out in (tmp_path, tmp_path / "seed0002.png"):
        said = _refused("sample", "-m", plain, "--seeds", "1-2", "-o", out)
        assert "seed0002.png: exists already; --overwrite replaces it" in said
        assert [path.name for path in tmp_path.iterdir()] == ["seed0002.png"]
        assert (tmp_path / "seed0002.png").read_bytes() == b"mine"
    assert (
        _do("sample", "-m", plain, "--seeds", "1-2", "--overwrite", "-o", tmp_path).exit_code == 0
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_the_statistics_are_told(plain: Path, tmp_path: Path) -> None:
    words = {
        ("--bn", "running"): "running statistics",
        ("--bn", "batch"): "batch statistics: a picture depends on those that it is drawn with",
        ("--standing", "32"): "standing statistics of 32 latents",
    }
    drawn = []
    for index, (given, said) in enumerate(words.items()):
        out = tmp_path / f"{index}.png"
        done = _do("sample", "-m", plain, "--json", *given, "-o", out)
        assert json.loads(done.stdout)["statistics"] == said
        drawn.append(_pixels(out).tobytes())
    assert len(set(drawn)) == 3


def test_a_shipped_generator_draws_by_name(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_root", lambda: plain.parent)
    monkeypatch.chdir(tmp_path)
    assert _do("sample", "-m", "plain").exit_code == 0
    assert _pixels(tmp_path / "samples.png").shape == (56, 8 * 58 - 2)
    listed = CliRunner().invoke(app, ["models", "list"])
    assert "sngan-generator" in listed.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--seeds", "7-3"), "--seeds 7-3: runs backwards; write 3-7"),
        (("--seeds", "-1"), "--seeds"),
        (("--bn", "bacth"), "choose one of standing, running, batch; did you mean 'batch'?"),
        (("--bn", "running", "--standing", "9"), "--standing 9 --bn running: goes with"),
    ],
)
def test_bad_options_are_usage_errors(plain: Path, given: tuple[str, ...], said: str) -> None:
    result = _do("sample", "-m", plain, *given)
    assert result.exit_code != 0
    assert said in f"{result.exception}{result.output}"


def test_wrong_classes_are_refused(run: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.png"
    said = _refused("sample", "-m", plain, "--class", "bag", "-o", out)
    assert said == "--class bag: the generator was trained without classes"
    said = _refused("sample", "-m", run, "--class", "boot", "-o", out)
    assert said == "--class boot: no such class; choose T-shirt/top, bag; or a number from 0 to 1"
    assert not out.exists()


def test_a_grid_of_too_many_is_refused_before_it_is_drawn(plain: Path, tmp_path: Path) -> None:
    said = _refused("sample", "-m", plain, "--seeds", "0-10000", "-o", tmp_path / "g.png")
    assert "10,001 pictures are too many for a grid" in said


def test_seeds_and_classes_are_read() -> None:
    assert read_seeds("3,9,20-22") == [3, 9, 20, 21, 22]
    assert choose_classes(("1", "0"), ("5", "1"), 2) == [1, 0]
    assert choose_classes((), (), 3) == [0, 1, 2]
    with pytest.raises(InputError, match="more than 1,000,000"):
        read_seeds("0-1000000")
    with pytest.raises(InputError, match="must be at most"):
        read_seeds(str(2**63))


def test_a_way_is_drawn(run: Path, tmp_path: Path) -> None:
    given = ("--seeds", "0-2", "--frames", "2", "--class", "bag")
    done = _do("interpolate", "-m", run, *given, "-o", tmp_path / "way.gif")
    assert "5 pictures" in done.stdout
    with Image.open(tmp_path / "way.gif") as file:
        assert getattr(file, "n_frames", 1) == 5


def test_a_way_goes_from_class_to_class(run: Path, plain: Path, tmp_path: Path) -> None:
    given = ("interpolate", "--between", "classes", "--scale", 1)
    more = ("--seeds", "5-6", "--frames", 3, "--loop", "--no-labels", "-o", tmp_path / "way.png")
    done = _do(*given, "-m", run, *more)
    assert "12 pictures" in done.stdout
    page = _pixels(tmp_path / "way.png")
    assert page.shape == (4 * 30 - 2, 4 * 30 - 2)  # two seeds, there and back
    generator, z = open_generator(run).generator, latents([5, 6], 6)
    ends = [sample(generator, z[1:], torch.tensor([label]))[0, 0].numpy() for label in (0, 1)]
    assert np.array_equal(page[60:88, :28], ends[0])
    assert np.array_equal(page[60:88, 90:], ends[1])
    assert np.array_equal(page[90:, 90:], ends[0])
    third = sample(generator, z[1:], torch.tensor([[2 / 3, 1 / 3]]))[0, 0].numpy()
    assert np.array_equal(page[60:88, 30:58], third)
    for where, chosen in ((run, ("--class", "bag")), (plain, ())):
        said = _refused(*given, "-m", where, *chosen, "-o", tmp_path / "none.png")
        assert "--between classes: " in said


def test_a_generator_is_exported(plain: Path, tmp_path: Path) -> None:
    done = _do("export", "-m", plain, "-o", tmp_path / "g.pt2")
    assert "input z: any×6" in done.stdout
    assert "output: any×1×28×28" in done.stdout
    assert "2 folded, 3 stay, their statistics in them; standing statistics" in done.stdout
    assert (tmp_path / "g.pt2").is_file()


def test_inspect_shows_every_layer_and_stale_vectors(tmp_path: Path) -> None:
    from normapps.engine.loop import CHECKPOINT
    from normapps.engine.run import load_checkpoint, save_checkpoint

    run = make_run(tmp_path / "run")
    done = _do("inspect", run)
    assert done.exit_code == 0
    assert "blocks.0.conv1" in done.stdout
    assert "28²" in done.stdout
    tensors, values = load_checkpoint(run / CHECKPOINT)
    key = "discriminator.blocks.2.conv1.parametrizations.weight.0._u"
    tensors[key] = torch.ones_like(tensors[key]) / tensors[key].numel() ** 0.5
    save_checkpoint(run / CHECKPOINT, tensors, values)
    done = _do("inspect", run, "--json")
    assert done.exit_code == 1
    rows = json.loads(done.stdout)
    assert [row["layer"] for row in rows if row["is_stale"]] == ["blocks.2.conv1"]
    assert "error: stale u and v in blocks.2.conv1" in done.stderr
