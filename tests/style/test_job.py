from __future__ import annotations

import hashlib
import io
import json
import os
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.data.images import with_pixels
from normapps.errors import InputError, UsageError
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.norm import Moments
from normapps.style import job as job_module
from normapps.style import looks as looks_module
from normapps.style.job import stylize_files
from normapps.style.options import StylizeOptions
from normapps.style.styles import Style, blend
from normapps.style.stylizer import Stylizer

COLORS = Moments(torch.ones(1), torch.zeros(1, 3), torch.ones(1, 3), torch.eye(3)[None])


class Inverter:
    """In place of a network: inverts pictures, and counts what it is asked for."""

    fingerprint = "0" * 64

    def __init__(self):
        self.measured, self.painted, self.hook = [], [], lambda picture: None

    def style(self, picture, *, size, name):
        self.measured.append((name, size))
        return Style(name, self.fingerprint, (), COLORS)

    def method_of(self, method):
        return "adain"

    def __call__(self, picture, style, **chosen):
        self.painted.append((picture.size, style.name))
        self.hook(picture)
        return with_pixels(picture, 255 - picture.pixels)


@pytest.fixture
def inverter():
    return Inverter()


@pytest.fixture(scope="session")
def stylizer(tmp_path_factory):
    """A random network that is small and paints with contrast."""
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    network.image.weight.data.mul_(4)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    save_model(folder, network, builder="adain-tiny", arguments=arguments)
    return Stylizer.load(folder, device="cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder with two paintings in `art`, as the working directory."""
    monkeypatch.chdir(tmp_path)
    _picture("art/wave.png", 1, (40, 30))
    _picture("art/ink.png", 2, (30, 40), brightest=40)
    return tmp_path


def _picture(
    path: str, seed: int, size: tuple[int, int] = (24, 16), brightest: int = 255
) -> np.ndarray:
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(0, brightest + 1, shape, np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def _options(**values) -> StylizeOptions:
    return StylizeOptions(**{"style": ("art/wave.png",), "output": "out/"} | values)


def _statuses(job) -> list[tuple[str, str]]:
    return [(result.output, result.status) for result in job]


def _manifest(folder: str = "out") -> dict[str, dict]:
    lines = Path(folder, "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = {entry["output"]: entry for entry in map(json.loads, lines)}
    assert len(entries) == len(lines)
    return entries


# What is made


def test_every_pair_is_what_the_stylizer_paints(here, stylizer):
    for number, name in enumerate(("a.png", "trip/b.png")):
        _picture(f"photos/{name}", 10 + number)
    options = _options(style=("art/wave.png", "art/ink.png"), alpha=0.8)
    results = list(stylize_files(options, ["photos"], stylizer=stylizer))
    assert [(r.content, r.style, r.output, r.status) for r in results] == [
        (
            f"photos/{folder}{stem}.png",
            f"art/{style}.png",
            f"out/{folder}{stem}--{style}.png",
            "done",
        )
        for folder, stem in (("", "a"), ("trip/", "b"))
        for style in ("wave", "ink")
    ]
    for result in results:
        style = stylizer.style(Image.open(result.style), size=512)
        wanted = np.asarray(stylizer(Image.open(result.content), style, alpha=0.8))
        assert np.array_equal(np.asarray(Image.open(result.output)), wanted)
        assert (result.width, result.height) == (24, 16)
    pair = [np.asarray(Image.open(result.output)).astype(int) for result in results[:2]]
    assert np.abs(pair[0] - pair[1]).mean() > 1


def test_weights_make_one_blend(here, stylizer):
    _picture("a.png", 1)
    options = _options(style=("art/wave.png", "art/ink.png"), style_weights="3,1", output="o.png")
    (result,) = stylize_files(options, ["a.png"], stylizer=stylizer)
    styles = [stylizer.style(Image.open(spec)) for spec in options.style]
    wanted = np.asarray(stylizer(Image.open("a.png"), blend(styles, (0.75, 0.25))))
    assert np.array_equal(np.asarray(Image.open("o.png")), wanted)
    assert not np.array_equal(wanted, np.asarray(stylizer(Image.open("a.png"), styles[0])))
    assert result.style == "0.75 art/wave.png + 0.25 art/ink.png"


def test_a_style_file_paints_as_its_painting(here, stylizer):
    _picture("a.png", 1)
    stylizer.style("art/wave.png", size=32).save("wave.style")
    list(stylize_files(_options(style_size=32, output="o.png"), ["a.png"], stylizer=stylizer))
    options = _options(style=("wave.style",), output="p.png")
    list(stylize_files(options, ["a.png"], stylizer=stylizer))
    assert Path("o.png").read_bytes() == Path("p.png").read_bytes()


def test_a_preset_is_a_style_file_by_its_name(here, stylizer, monkeypatch):
    _picture("a.png", 1)
    stylizer.style("art/ink.png").save("shipped/night.style")
    monkeypatch.setattr(looks_module, "preset_path", lambda name, _: Path(f"shipped/{name}.style"))
    options = _options(style=("preset:night", "art/ink.png"))
    results = list(stylize_files(options, ["a.png"], stylizer=stylizer))
    assert [(r.style, r.output) for r in results] == [
        ("preset:night", "out/a--night.png"),
        ("art/ink.png", "out/a--ink.png"),
    ]
    assert Path("out/a--night.png").read_bytes() == Path("out/a--ink.png").read_bytes()


def test_size_colour_and_quality_reach_the_result(here, stylizer):
    _picture("a.png", 1, (40, 20))
    values = {"size": 20, "preserve_color": "luma", "output": "o.jpg", "quality": 100}
    (result,) = stylize_files(_options(**values), ["a.png"], stylizer=stylizer)
    assert (result.width, result.height) == (20, 10)
    style = stylizer.style(Image.open("art/wave.png"))
    wanted = stylizer(Image.open("a.png"), style, size=20, preserve_color="luma")
    error = np.asarray(wanted).astype(int) - np.asarray(Image.open("o.jpg")).astype(int)
    assert np.abs(error).max() <= 6
    list(stylize_files(_options(**values | {"output": "p.jpg", "quality": 5}), ["a.png"],
                       stylizer=stylizer))  # fmt: skip
    assert Path("p.jpg").stat().st_size < Path("o.jpg").stat().st_size


def test_notes_of_reading_and_writing_come_along(here, inverter):
    frames = [Image.fromarray(np.full((4, 4, 4), value, np.uint8)) for value in (90, 200)]
    frames[0].save("a.webp", save_all=True, append_images=frames[1:], lossless=True)
    (result,) = stylize_files(_options(output="o.jpg"), ["a.webp"], stylizer=inverter)
    assert result.notes == ("first of 2 frames", "JPEG has no transparency: laid on white")


# How much is read and kept in memory


def test_pictures_are_read_once_and_styles_measured_once(here, inverter, monkeypatch):
    read = []
    original = job_module.read_image
    monkeypatch.setattr(
        job_module,
        "read_image",
        lambda path, **more: read.append(str(path)) or original(path, **more),
    )
    for name in "abc":
        _picture(f"photos/{name}.png", 1)
    options = _options(style=("art/wave.png", "art/ink.png"), style_size=99)
    assert len(list(stylize_files(options, ["photos"], stylizer=inverter))) == 6
    assert read == ["photos/a.png", "photos/b.png", "photos/c.png"]
    assert inverter.measured == [("wave", 99), ("ink", 99)]


def test_memory_does_not_grow_with_the_number_of_pictures(here, inverter):
    for number in range(12):
        _picture(f"photos/{number}.png", number)
    seen: list[weakref.ref] = []
    most = 0

    def watch(picture):
        nonlocal most
        seen.append(weakref.ref(picture))
        most = max(most, sum(each() is not None for each in seen))

    inverter.hook = watch
    results = list(stylize_files(_options(), ["photos"], stylizer=inverter))
    assert len(results) == len(seen) == 12
    assert most == 1


def test_nothing_is_done_before_the_iteration(here, inverter):
    _picture("a.png", 1)
    job = stylize_files(_options(), ["a.png"], stylizer=inverter)
    assert len(job) == 1
    assert not Path("out").exists()
    assert inverter.painted == []


# Standard input and output


@pytest.mark.parametrize(("given", "got"), [("JPEG", "JPEG"), ("WEBP", "WEBP"), ("BMP", "PNG")])
def test_a_dash_reads_stdin_and_writes_the_format_back(here, inverter, given, got):
    source, out = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(source, given)
    source.seek(0)
    (result,) = stylize_files(
        _options(output="-"), ["-"], stylizer=inverter, stdin=source, stdout=out
    )
    assert (result.content, result.output, result.status) == ("-", "-", "done")
    image = Image.open(out)
    assert (image.format, image.size) == (got, (9, 5))


def test_stdin_into_a_folder_is_made_but_never_taken_for_made(here, inverter):
    picture = io.BytesIO()
    Image.new("RGB", (9, 5), "red").save(picture, "PNG")
    for status in ("done", "failed"):
        picture.seek(0)
        job = stylize_files(_options(), ["-"], stylizer=inverter, stdin=picture)
        assert _statuses(job) == [("out/stdin.png", status)]


def test_an_empty_stdin_is_said(here, inverter):
    job = stylize_files(_options(output="-"), ["-"], stylizer=inverter, stdin=io.BytesIO())
    assert "is empty" in next(iter(job)).error


# What fails, and what goes on


def test_bad_pictures_are_named_and_the_rest_goes_on(here, inverter):
    _picture("photos/a.png", 1)
    _picture("photos/d.png", 1)
    Path("photos/b.png").write_bytes(Path("photos/a.png").read_bytes()[:300])
    Path("photos/c.png").write_text("hello")
    results = list(stylize_files(_options(), ["photos", "gone.png"], stylizer=inverter))
    assert [result.status for result in results] == ["done", "failed", "failed", "done", "failed"]
    errors = [result.error for result in results if result.error]
    for error, path in zip(errors, ("photos/b.png", "photos/c.png", "gone.png"), strict=True):
        assert error.startswith(f"{path}: ")
        assert "\n" not in error
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "d.png", "manifest.jsonl"]
    assert _manifest()["b.png"]["status"] == "failed"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")]
)
def test_too_little_memory_is_one_line_with_a_remedy(here, inverter, error):
    _picture("a.png", 1)
    _picture("b.png", 1, (8, 8))

    def scarce(picture):
        if picture.size != (8, 8):
            raise error

    inverter.hook = scarce
    results = list(stylize_files(_options(), ["a.png", "b.png"], stylizer=inverter))
    assert results[0].error == "a.png: out of memory; a smaller --size needs less"
    assert results[1].status == "done"


def test_what_the_stylizer_refuses_gets_the_pictures_name(here, inverter):
    _picture("a.png", 1)

    def refuse(picture):
        raise InputError("out of memory on the device; use --device cpu")

    inverter.hook = refuse
    (result,) = stylize_files(_options(), ["a.png"], stylizer=inverter)
    assert result.error == "a.png: out of memory on the device; use --device cpu"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect")])
def test_whatever_ends_the_job_finished_pictures_stay_and_a_rerun_goes_on(here, inverter, error):
    for number in range(4):
        _picture(f"photos/{number}.png", number)

    def stop(picture):
        if len(inverter.painted) == 3:
            raise error

    inverter.hook = stop
    with pytest.raises(type(error)):
        list(stylize_files(_options(), ["photos"], stylizer=inverter))
    assert sorted(p.name for p in Path("out").iterdir()) == ["0.png", "1.png", "manifest.jsonl"]
    assert list(_manifest()) == ["0.png", "1.png"]
    again = Inverter()
    job = stylize_files(_options(), ["photos"], stylizer=again)
    statuses = ["kept", "kept", "done", "done"]
    assert _statuses(job) == [(f"out/{n}.png", status) for n, status in enumerate(statuses)]
    assert len(again.painted) == 2


# Running again


@pytest.fixture
def done(here):
    """A folder job that was run: a.png and b.png."""
    for number, name in enumerate("ab"):
        _picture(f"photos/{name}.png", number)
    assert all(
        r.status == "done" for r in stylize_files(_options(), ["photos"], stylizer=Inverter())
    )


def test_the_manifest_says_what_was_made_of_what_and_how(done):
    entry = _manifest()["a.png"]
    content = Path("photos/a.png")
    assert entry["content"] == "photos/a.png"
    assert entry["style"] == "art/wave.png"
    assert entry["status"] == "done"
    assert entry["seconds"] > 0
    assert (entry["width"], entry["height"]) == (24, 16)
    assert entry["model"] == "adain-tiny"
    assert entry["source"] == {
        "size": content.stat().st_size,
        "mtime_ns": content.stat().st_mtime_ns,
        "sha256": hashlib.sha256(content.read_bytes()).hexdigest(),
    }
    style = hashlib.sha256(Path("art/wave.png").read_bytes()).hexdigest()
    recipe = entry["recipe"]
    assert recipe["styles"] == [{"sha256": style, "weight": 1.0}]
    assert recipe["model_sha256"] == Inverter.fingerprint
    assert recipe["alpha"] == 1.0
    assert recipe["preserve_color"] == "none"


def test_the_same_job_keeps_what_is_there(done, inverter):
    before = Path("out/a.png").stat().st_mtime_ns
    results = list(stylize_files(_options(), ["photos"], stylizer=inverter))
    assert [(r.output, r.status, r.width) for r in results] == [
        ("out/a.png", "kept", 24),
        ("out/b.png", "kept", 24),
    ]
    assert inverter.painted == []
    assert Path("out/a.png").stat().st_mtime_ns == before


def test_a_picture_copied_anew_is_the_same_picture(done, inverter):
    os.utime("photos/a.png", ns=(1, 1))
    job = stylize_files(_options(), ["photos"], stylizer=inverter)
    assert [status for _, status in _statuses(job)] == ["kept", "kept"]


def test_a_missing_result_is_made_again(done, inverter):
    Path("out/a.png").unlink()
    job = stylize_files(_options(), ["photos"], stylizer=inverter)
    assert _statuses(job) == [("out/a.png", "done"), ("out/b.png", "kept")]


@pytest.mark.parametrize(
    "values",
    [{"alpha": 0.5}, {"size": 8}, {"style": ("art/ink.png",)}, {"preserve_color": "luma"},
     {"style_size": 64}, {"dtype": "bfloat16"}, {"style_weights": "1", "alpha": 0.9}],
)  # fmt: skip
def test_other_options_are_refused_and_do_not_spoil_the_manifest(done, inverter, values):
    results = list(stylize_files(_options(**values), ["photos"], stylizer=inverter))
    assert {result.status for result in results} == {"failed"}
    assert results[0].error == (
        "out/a.png: was made of another picture or with other options; --overwrite replaces it"
    )
    job = stylize_files(_options(), ["photos"], stylizer=inverter)
    assert {status for _, status in _statuses(job)} == {"kept"}


def test_another_picture_or_model_under_the_same_name_is_refused(done, inverter):
    _picture("photos/a.png", 77)
    job = stylize_files(_options(), ["photos"], stylizer=inverter)
    assert _statuses(job) == [("out/a.png", "failed"), ("out/b.png", "kept")]
    inverter.fingerprint = "1" * 64
    job = stylize_files(_options(), ["photos"], stylizer=inverter)
    assert {status for _, status in _statuses(job)} == {"failed"}


def test_overwrite_makes_all_anew_and_leaves_one_entry_an_output(done, inverter):
    options = _options(alpha=0.5, overwrite=True)
    job = stylize_files(options, ["photos"], stylizer=inverter)
    assert {status for _, status in _statuses(job)} == {"done"}
    assert {entry["recipe"]["alpha"] for entry in _manifest().values()} == {0.5}
    job = stylize_files(replace(options, overwrite=False), ["photos"], stylizer=inverter)
    assert {status for _, status in _statuses(job)} == {"kept"}


def test_a_second_job_adds_to_the_manifest(done, inverter):
    _picture("more/c.png", 5)
    list(stylize_files(_options(), ["more"], stylizer=inverter))
    assert list(_manifest()) == ["a.png", "b.png", "c.png"]


def test_a_file_of_somebody_else_is_refused(here, inverter):
    _picture("a.png", 1)
    theirs = _picture("out/a.png", 2)
    (result,) = stylize_files(_options(), ["a.png"], stylizer=inverter)
    assert result.error == "out/a.png: exists already; --overwrite replaces it"
    assert inverter.painted == []
    assert np.array_equal(np.asarray(Image.open("out/a.png")), theirs)


def test_a_single_file_is_refused_until_overwritten(here, inverter):
    _picture("a.png", 1)
    for status in ("done", "failed"):
        job = stylize_files(_options(output="o.png"), ["a.png"], stylizer=inverter)
        assert _statuses(job) == [("o.png", status)]
    job = stylize_files(_options(output="o.png", overwrite=True), ["a.png"], stylizer=inverter)
    assert _statuses(job) == [("o.png", "done")]
    assert not Path("manifest.jsonl").exists()


def test_results_of_an_earlier_job_are_no_pictures_of_the_next(here, inverter):
    _picture("photos/a.png", 1)
    inside = _options(output="photos/")
    both = replace(inside, style=("art/wave.png", "art/ink.png"))
    made = ["photos/a--wave.png", "photos/a--ink.png"]
    for status in ("done", "kept"):
        job = stylize_files(both, ["photos"], stylizer=inverter)
        assert _statuses(job) == [(path, status) for path in made]
    named = stylize_files(_options(), ["photos/a--wave.png"], stylizer=inverter)
    assert _statuses(named) == [("out/a--wave.png", "done")]


def test_a_picture_replaced_on_purpose_is_not_stylized_twice(here, inverter):
    pixels = _picture("photos/a.png", 1)
    options = _options(output="photos", overwrite=True)
    assert _statuses(stylize_files(options, ["photos"], stylizer=inverter)) == [
        ("photos/a.png", "done")
    ]
    assert np.array_equal(np.asarray(Image.open("photos/a.png")), 255 - pixels)
    with pytest.raises(InputError, match="only results of an earlier job"):
        stylize_files(options, ["photos"], stylizer=inverter)


# What is refused before any work


def test_a_missing_style_stops_the_job_at_once(here, inverter):
    _picture("a.png", 1)
    options = _options(style=("art/wave.png", "art/gone.png"))
    with pytest.raises(InputError, match=r"^art/gone\.png: no such style file"):
        stylize_files(options, ["a.png"], stylizer=inverter)
    assert inverter.measured == []


def test_a_damaged_style_stops_the_job(here, inverter):
    _picture("a.png", 1)
    Path("art/bad.png").write_text("hello")
    with pytest.raises(InputError, match=r"^art/bad\.png: is not a picture"):
        stylize_files(_options(style=("art/bad.png",)), ["a.png"], stylizer=inverter)


def test_a_style_of_other_weights_stops_the_job(here, stylizer):
    _picture("a.png", 1)
    style = stylizer.style("art/wave.png")
    replace(style, model="f" * 64).save("wave.style")
    with pytest.raises(InputError, match=r"^wave\.style: was encoded by other weights"):
        stylize_files(_options(style=("wave.style",)), ["a.png"], stylizer=stylizer)


def test_max_pixels_holds_for_paintings_too(here, inverter):
    _picture("a.png", 1, (8, 8))
    with pytest.raises(InputError, match=r"^art/wave\.png: 1200 pixels .* --max-pixels 1200"):
        stylize_files(_options(max_pixels=500), ["a.png"], stylizer=inverter)
    options = _options(max_pixels=1200)
    assert [r.status for r in stylize_files(options, ["a.png"], stylizer=inverter)] == ["done"]


def test_a_style_is_not_overwritten_on_purpose_either(here, inverter):
    _picture("a.png", 1)
    Path("link.png").symlink_to("art/wave.png")
    for output in ("art/wave.png", "link.png"):
        with pytest.raises(UsageError, match=f"^-o {output}: is a style of this job"):
            stylize_files(_options(output=output, overwrite=True), ["a.png"], stylizer=inverter)


def test_a_picture_still_to_be_read_is_not_overwritten_on_purpose_either(here, inverter):
    _picture("a.png", 1)
    _picture("x/a.png", 1)
    options = _options(output="x", overwrite=True)
    with pytest.raises(UsageError, match=r"^-o x/a\.png: is itself a picture to be read"):
        stylize_files(options, ["a.png", "x/a.png"], stylizer=inverter)


def test_a_file_of_unknown_format_is_refused_as_usage(here, inverter):
    _picture("a.png", 1)
    with pytest.raises(UsageError, match=r"^-o o\.xyz: cannot write \.xyz"):
        stylize_files(_options(output="o.xyz"), ["a.png"], stylizer=inverter)


def test_several_results_do_not_go_into_one_file(here, inverter):
    for output in ("o.png", "-"):
        options = _options(style=("art/wave.png", "art/ink.png"), output=output)
        with pytest.raises(UsageError, match="-o"):
            stylize_files(options, ["art/wave.png"], stylizer=inverter)


def test_a_folder_that_cannot_be_made_is_refused_before_computing(here, inverter):
    _picture("a.png", 1)
    Path("file").write_text("")
    for output in ("file/out/", "file/out/o.png"):
        with pytest.raises(InputError, match=r"^file/out: cannot be made, .*file is a file"):
            stylize_files(_options(output=output), ["a.png"], stylizer=inverter)
    assert inverter.measured == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_before_computing(here, inverter):
    _picture("a.png", 1)
    Path("out").mkdir(mode=0o500)
    with pytest.raises(InputError, match="is not writable"):
        stylize_files(_options(), ["a.png"], stylizer=inverter)


# Options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"style": ()}, "--style is missing"),
        ({"output": ""}, "-o is missing"),
        ({"style_weights": "0.5,0.5"}, "2 weights for 1 styles"),
        ({"style_weights": "x"}, "give numbers with commas"),
        ({"style_weights": "-1"}, "none is negative"),
        ({"style_weights": "0"}, "one not 0"),
        ({"style_weights": "nan"}, "finite"),
        ({"style_weights": "inf"}, "finite"),
        ({"alpha": 1.5}, "--alpha 1.5: must be between 0 and 1"),
        ({"alpha": float("nan")}, "--alpha nan: must be between 0 and 1"),
        ({"size": 0}, "--size 0: must be between 1 and 65500"),
        ({"size": 10_000_000}, "--size 10000000: must be between 1 and 65500"),
        ({"style_size": 10_000_000}, "--style-size 10000000: must be between 16 and 65500"),
        ({"quality": 101}, "--quality 101"),
        ({"preserve_color": "hue"}, "--preserve-color 'hue': choose one of none, luma, transport"),
        ({"dtype": "int8"}, "--dtype"),
    ],
)
def test_options_refuse_what_cannot_be(values, message):
    with pytest.raises(InputError) as caught:
        _options(**values)
    assert message in str(caught.value)


def test_weights_are_scaled_to_one():
    assert _options(style=("a", "b"), style_weights="3, 1").weights == (0.75, 0.25)
    assert _options().weights is None
