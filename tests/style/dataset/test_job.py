from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from normapps.data.images import read_image
from normapps.errors import InputError, NormappsError, UsageError
from normapps.style.dataset import bank, painter
from normapps.style.dataset.job import DatasetJob, stylize_dataset
from normapps.style.dataset.options import DatasetOptions
from normapps.style.dataset.painter import DatasetResult
from normapps.style.stylizer import Stylizer

Run = Callable[..., list[DatasetResult]]
Tree = Callable[[str], dict[str, bytes]]
Draw = Callable[..., None]

PICTURES = ["c.png", "cat/a.jpg", "cat/a.png", "cat/b.png", "dog/a.jpg"]
OTHERS = ["cat/a.xml", "labels.csv"]


def _manifest(out: str = "out") -> dict[str, dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted(Path(out).glob("stylize-dataset.*manifest.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert len({line["output"] for line in lines}) == len(lines)
    return {line["output"]: line for line in lines}


# What is made


def test_tree_names_and_other_files_are_kept(run: Run, tree: Tree) -> None:
    results = run()
    assert sorted(result.output for result in results) == PICTURES
    assert not any(result.error for result in results)
    made = tree("out")
    assert sorted(made) == sorted(PICTURES + OTHERS)
    assert made["cat/a.xml"] == b"<cat/>"
    assert made["cat/a.jpg"] != made["cat/a.png"]
    assert Image.open("out/cat/a.jpg").format == "JPEG"
    assert Path("out/cat/a.xml").stat().st_mtime_ns == Path("data/cat/a.xml").stat().st_mtime_ns
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]


def test_a_picture_is_what_the_stylizer_makes_of_it(run: Run, model: Path) -> None:
    run(alpha="0.3,0.9", method="wct", size=32, dtype="float32", preserve_color="luma")
    stylizer = Stylizer.load(model, device="cpu", dtype="float32")
    for name, entry in _manifest().items():
        style = stylizer.style(f"art/{entry['style']}", size=512)
        wanted = stylizer(
            read_image(f"data/{name}"),
            style,
            alpha=entry["alpha"],
            size=32,
            method="wct",
            preserve_color="luma",
        )
        found = np.asarray(Image.open(f"out/{name}")).astype(int)
        tolerance = 0 if name.endswith(".png") else 60  # noise as JPEG
        assert np.abs(found - wanted.pixels).max() <= tolerance
        assert (entry["width"], entry["height"]) == (32, 21)


def test_the_manifest_says_what_was_made_of_what(run: Run) -> None:
    run()
    entries = _manifest()
    assert sorted(entries) == PICTURES
    entry = entries["cat/a.jpg"]
    known = subprocess.run(
        ["sha256sum", "data/cat/a.jpg"], capture_output=True, text=True, check=True
    )
    assert entry["source_sha256"] == known.stdout.split()[0]
    assert entry["source"] == "cat/a.jpg"
    assert entry["style"] in ("wave.png", "ink.png", "sun.png", "old/moon.png")
    record = json.loads(Path("out/stylize-dataset.json").read_text())
    assert record["styles"]["number"] == 4


def test_draws_depend_on_seed_and_path_alone(run: Run) -> None:
    run("one", alpha="0.2,0.8")
    run("two", alpha="0.2,0.8", seed=1)
    Path("data/cat/new.png").write_bytes(Path("data/c.png").read_bytes())
    shutil.copytree("data", "elsewhere/data")
    run("three", alpha="0.2,0.8", data="elsewhere/data", workers=1)
    one, two, three = (_manifest(out) for out in ("one", "two", "three"))
    draws = [{k: (v["style"], v["alpha"]) for k, v in each.items()} for each in (one, two, three)]
    assert draws[0] == {name: draws[2][name] for name in draws[0]}
    for part in (0, 1):  # style and strength
        drawn = [[each[name][part] for name in PICTURES] for each in draws[:2]]
        assert drawn[0] != drawn[1]
    alphas = [alpha for _, alpha in draws[2].values()]
    assert len(set(alphas)) == 6
    assert all(0.2 <= alpha <= 0.8 for alpha in alphas)


def test_several_styles_make_complete_trees(run: Run, tree: Tree) -> None:
    run("drawn", num_styles=3, alpha="0,1", size=16)
    assert len({entry["alpha"] for entry in _manifest("drawn").values()}) == 15
    run(num_styles=3)
    names = sorted(PICTURES + OTHERS)
    assert sorted(tree("out")) == [f"{number}/{name}" for number in (1, 2, 3) for name in names]
    entries = _manifest()
    for name in PICTURES:
        assert len({entries[f"{number}/{name}"]["style"] for number in (1, 2, 3)}) == 3
    run("single")
    single = tree("single")
    assert single == {name: tree("out")[f"1/{name}"] for name in names}


def test_formats_and_quality(run: Run) -> None:
    run("png", format="png")
    assert sorted(_manifest("png")) == [
        *("c.png", "cat/a-jpg.png", "cat/a.png", "cat/b.png", "dog/a.png")
    ]
    assert Image.open("png/dog/a.png").format == "PNG"
    run("low", quality=5, format="jpg")
    run("high", quality=95, format="jpg")
    low, high = (Path(out, "dog/a.jpg").stat().st_size for out in ("low", "high"))
    assert low < high


def test_patterns_are_copied_as_they_are(run: Run, tree: Tree) -> None:
    run(copy=("cat/*.png",))
    assert tree("out")["cat/a.png"] == Path("data/cat/a.png").read_bytes()
    assert "cat/a.png" not in _manifest()


def test_a_limit_spreads_and_the_rest_may_follow(run: Run, tree: Tree) -> None:
    assert len(run(limit=3)) == 3
    few = tree("out")
    assert {name.split("/")[0] for name in few} >= {"cat", "dog"}
    assert len(run()) == 2
    run("whole")
    assert tree("out") == tree("whole")
    assert len(run("more", limit=99)) == 5


# Shards, resumption, killing


def test_shards_make_the_whole_in_any_order(run: Run, tree: Tree) -> None:
    run("whole", num_styles=2, alpha="0.5,1")
    parts = [run("out", num_styles=2, alpha="0.5,1", shard=f"{i}/3") for i in (3, 1, 2)]
    assert sorted(len(part) for part in parts) != [0, 0, 10]
    assert tree("out") == tree("whole")
    assert _manifest("out") == _manifest("whole")
    assert run("out", num_styles=2, alpha="0.5,1", shard="2/5") == []


def test_a_finished_picture_is_not_read_again(
    run: Run, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*g")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(painter, "read_image", refuse)
    assert run() == []
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*g")} == before


def test_what_is_gone_unrecorded_or_older_is_made_again(run: Run, tree: Tree) -> None:
    run()
    whole = tree("out")
    Path("out/c.png").unlink()
    lines = Path("out/stylize-dataset.manifest.jsonl")
    kept = [line for line in lines.read_text().splitlines(True) if '"dog/a.jpg"' not in line]
    lines.write_text("".join(kept))
    Path("out/dog/a.jpg").write_bytes(b"half")
    Path("out/cat/a.png").write_bytes(b"")  # recorded, and lost with the power
    later = time.time() + 100
    os.utime("data/cat/b.png", (later, later))
    assert sorted(result.output for result in run()) == [
        *("c.png", "cat/a.png", "cat/b.png", "dog/a.jpg")
    ]
    assert tree("out") == whole


def test_other_options_are_refused_and_overwritten(run: Run, tree: Tree) -> None:
    run()
    first = tree("out")
    with pytest.raises(UsageError, match=r"its results have alpha 1, not 0\.5"):
        run(alpha="0.5")
    assert len(run(alpha="0.5", overwrite=True)) == 5
    assert tree("out")["c.png"] != first["c.png"]
    _manifest()


def _killed_when(made: int, command: list[str], out: Path) -> None:
    """Start a job and kill its process, SIGKILL, as soon as it recorded some results."""
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while job.poll() is None:
            found = sum(path.read_bytes().count(b"\n") for path in out.glob("*manifest.jsonl"))
            if found >= made:
                job.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
    finally:
        job.kill()
        job.wait()


def test_killed_and_resumed_gives_the_same_bytes(
    here: Path, run: Run, model: Path, tree: Tree, draw_picture: Draw
) -> None:
    for number in range(60):
        draw_picture(f"data/many/{number}.png", 100 + number, (96, 64))
    command = [sys.executable, "-m", "normapps.cli.main", "stylize-dataset", "data", "art", "out"]
    flags = ["--model", str(model), "--device", "cpu", "--cache", "cache", "--alpha", "0.5,1"]
    _killed_when(5, [*command, *flags], Path("out"))
    left = len(list(Path("out").rglob("*.*g")))
    assert 5 <= left < 65
    results = run(alpha="0.5,1")
    assert 65 - left <= len(results) < 65
    run("whole", alpha="0.5,1")
    assert tree("out") == tree("whole")
    assert _manifest("out") == _manifest("whole")
    assert not [path.name for path in Path("out").iterdir() if path.name.startswith(".")]


# Failures


def test_a_bad_file_is_named_and_the_rest_done(run: Run) -> None:
    Path("data/cat/bad.jpg").write_text("no picture")
    Path("data/cat/torn.png").write_bytes(Path("data/c.png").read_bytes()[:300])
    failed = {result.source: result.error for result in run() if result.error}
    assert sorted(failed) == ["cat/bad.jpg", "cat/torn.png"]
    assert failed["cat/bad.jpg"].startswith("data/cat/bad.jpg: ")
    assert Path("out/stylize-dataset.failed.txt").read_text().count("data/cat/bad.jpg: ") == 1
    assert sorted(_manifest()) == PICTURES
    again = run()
    assert sorted(result.source for result in again) == ["cat/bad.jpg", "cat/torn.png"]
    shutil.copy("data/c.png", "data/cat/bad.jpg")
    Path("data/cat/torn.png").unlink()
    assert [result.error for result in run()] == [""]
    assert not Path("out/stylize-dataset.failed.txt").exists()


def test_a_bad_style_is_named_once_and_another_drawn(run: Run) -> None:
    run("good")
    used = _manifest("good")["cat/a.jpg"]["style"]
    size = Path("art", used).stat().st_size
    Path("art", used).write_bytes(b"x" * size)
    results = run("out", cache="other")
    failed = [result for result in results if result.error]
    assert [(result.source, result.output) for result in failed] == [(used, "")]
    assert sorted(_manifest()) == PICTURES
    good, now = _manifest("good"), _manifest()
    for name in PICTURES:
        if good[name]["style"] == used:
            assert now[name]["style"] != used
        else:
            assert now[name]["style"] == good[name]["style"]


def test_links_to_nothing_are_named(run: Run) -> None:
    for name in ("data/cat/gone.jpg", "data/gone.txt", "art/gone.png"):
        Path(name).symlink_to("nowhere")
    failed = [result.error for result in run(num_styles=4) if result.error]
    assert sorted({error.partition(": ")[0] for error in failed}) == [
        *("art/gone.png", "data/cat/gone.jpg", "data/gone.txt")
    ]
    assert sum("data/gone.txt: cannot be read (No such file" in error for error in failed) == 4
    assert all(error.count("\n") == 0 for error in failed)


def test_a_data_set_with_a_link_to_its_results_is_refused(run: Run) -> None:
    Path("data/link").symlink_to("../out")
    Path("out").mkdir()
    with pytest.raises(InputError, match=r"data/link holds results of stylize-dataset"):
        run()
    assert _manifest() == {}


def test_names_may_be_of_any_bytes(run: Run, draw_picture: Draw) -> None:
    shutil.copy("data/c.png", b"data/\xff\n.png")
    Path(os.fsdecode(b"data/\xfe\n.jpg")).write_text("no picture")
    for path in Path("art").rglob("*.png"):
        path.unlink()
    draw_picture("art/a.png", 1)
    os.rename("art/a.png", b"art/\xff.png")
    results = run()
    assert [result.source for result in results if result.error] == ["\udcfe\n.jpg"]
    assert Path("out/stylize-dataset.failed.txt").read_bytes().count(b"\n") == 1
    assert _manifest()["\udcff\n.png"]["style"] == "\udcff.png"
    assert Path(os.fsdecode(b"out/\xff\n.png")).is_file()
    assert len(list(Path("cache").iterdir())) == 1
    assert len(run()) == 1


def test_a_cache_that_takes_nothing_is_done_without(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("cache: cannot be written")

    monkeypatch.setattr("normapps.style.styles.Style.save", refuse)
    assert not any(result.error for result in run())


def test_without_a_style_the_job_ends(run: Run) -> None:
    for path in Path("art").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(NormappsError, match=r"0 of 4 styles can be used.*one that cannot: art/"):
        run()


def test_out_of_memory_is_tried_by_tiles(run: Run, tree: Tree, monkeypatch: Any) -> None:
    run("whole")
    original, sides = Stylizer.__call__, []

    def scarce(self: Stylizer, *args: Any, **values: Any) -> Any:
        sides.append(self.renderer.side)  # type: ignore[attr-defined]
        if sides[-1] is None or sides[-1] > 256:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return original(self, *args, **values)

    monkeypatch.setattr(Stylizer, "__call__", scarce)
    assert not any(result.error for result in run(workers=1))
    assert sides[:4] == [None, 1024, 512, 256]
    assert tree("out") == tree("whole")


def test_out_of_memory_at_last_is_one_pictures_failure(run: Run, monkeypatch: Any) -> None:
    original = Stylizer.__call__

    def scarce(self: Stylizer, content: Any, *args: Any, **values: Any) -> Any:
        if content.size == (90, 90):
            raise MemoryError
        return original(self, content, *args, **values)

    Image.new("RGB", (90, 90)).save("data/big.png")
    monkeypatch.setattr(Stylizer, "__call__", scarce)
    failed = [result for result in run() if result.error]
    assert [result.source for result in failed] == ["big.png"]
    assert "data/big.png: out of memory, by tiles too" in failed[0].error


def test_an_error_nobody_expects_ends_the_job(run: Run, monkeypatch: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Stylizer, "__call__", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run()
    assert _manifest() == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "nowhere"}, "nowhere: no such folder"),
        ({"data": "art/old", "styles": "gone"}, "gone: no such folder or painting"),
        ({"out": "data/out"}, "data and data/out: one lies in the other"),
        ({"out": "."}, "one lies in the other"),
        ({"out": ""}, "DIR, STYLES or OUT is empty"),
        ({"out": "art"}, "art and art: one lies in the other"),
        ({"out": "art/out"}, "art and art/out: one lies in the other"),
        ({"cache": "data/labels.csv"}, "data/labels.csv: is a file, not a folder"),
        ({"num_styles": 5}, "--num-styles 5: art has 4; give fewer"),
        ({"styles": "data/labels.csv"}, "styles can be used"),
        ({"data": "empty"}, "empty: no pictures there"),
        ({"styles": "empty"}, "empty: holds no style"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(run: Run, values: dict[str, Any], message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(NormappsError, match=message) as caught:
        run(**values)
    assert "\n" not in str(caught.value)
    assert values.get("styles") == "data/labels.csv" or not Path("out").exists()


# Styles


def test_a_style_is_measured_once_and_kept_on_disk(run: Run, tree: Tree, monkeypatch: Any) -> None:
    measured: list[str] = []
    original = Stylizer.style

    def counted(self: Stylizer, image: Any, **values: Any) -> Any:
        measured.append(values["name"])
        return original(self, image, **values)

    monkeypatch.setattr(Stylizer, "style", counted)
    run("one", num_styles=4, workers=3)
    assert sorted(measured) == ["ink", "moon", "sun", "wave"]
    run("two", num_styles=4)
    assert len(measured) == 4
    assert tree("one") == tree("two")
    monkeypatch.setattr(bank, "_IN_MEMORY", 1)
    run("three", num_styles=4)
    assert len(measured) == 4
    for path in Path("cache").iterdir():
        path.write_bytes(b"damaged")
    run("four", num_styles=4)
    assert len(measured) == 8
    run("five", num_styles=4, style_size=64)
    assert len(measured) == 12
    assert tree("one") == tree("three") == tree("four") != tree("five")


def test_styles_may_be_files_that_were_encoded(run: Run, tree: Tree, model: Path) -> None:
    stylizer = Stylizer.load(model, device="cpu")
    stylizer.style("art/ink.png").save("encoded/ink.style")
    run("one", styles="encoded")
    run("two", styles="art/ink.png")
    run("three", styles="encoded/ink.style")
    assert tree("one") == tree("two") == tree("three")


def test_a_style_of_other_weights_is_named(run: Run) -> None:
    Stylizer.load("adain-tiny", device="cpu").style("art/ink.png").save("art/other.style")
    results = run(num_styles=4)
    assert [result.error for result in results if result.error] == [
        "art/other.style: was encoded by other weights than --model; encode it again"
    ]


def test_presets_of_the_model(here: Path) -> None:
    options = DatasetOptions(device="cpu", limit=1, size=32)
    results = list(stylize_dataset(options, "data", "preset:all", "out"))
    assert [result.error for result in results] == [""]
    assert results[0].style.startswith("preset:")
    with pytest.raises(InputError, match="unknown preset 'inkk'"):
        stylize_dataset(options, "data", "preset:inkk", "out2")


def test_counts(here: Path, model: Path, run: Run) -> None:
    run(limit=2, num_styles=2)
    job = stylize_dataset(
        DatasetOptions(model=str(model), device="cpu", cache="cache", num_styles=2),
        "data",
        "art",
        "out",
    )
    assert isinstance(job, DatasetJob)
    assert (job.total, job.missing) == (10, 6)
    assert len(list(job)) == 6
    assert (job.kept, job.copied) == (4, 0)
