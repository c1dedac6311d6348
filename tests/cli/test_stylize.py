from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from normapps.cli.main import app, main
from normapps.errors import UsageError
from normapps.models.adain_tiny import AdainTiny
from normapps.models.folder import save_model
from normapps.style.stylizer import Stylizer


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a random network that is small and paints with contrast."""
    torch.manual_seed(0)
    network = AdainTiny(width=8, deep=8, hidden=4)
    network.image.weight.data.mul_(4)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    arguments = {"width": 8, "deep": 8, "hidden": 4}
    save_model(folder, network, builder="adain-tiny", arguments=arguments)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch, astronaut, coffee):
    """Photos `photos/a.png`, `photos/trip/b.jpg` and paintings `wave.png`, `ink.png` to work in."""
    monkeypatch.chdir(tmp_path)
    Path("photos/trip").mkdir(parents=True)
    Image.fromarray(astronaut[:96:2, :128:2]).save("photos/a.png")
    Image.fromarray(astronaut[100:164, 200:248]).save("photos/trip/b.jpg")
    Image.fromarray(coffee[::8, ::8]).save("wave.png")
    Image.fromarray(coffee[200:240, 200:240] // 4).save("ink.png")
    return tmp_path


class Ran:
    """What a command left: its exit code and both outputs."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch, capsys, model):
    """Run `normapps stylize …` with the small model in this process, as the console script does."""

    def _run(*arguments):
        command = ["normapps", "stylize", "--model", model, "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            main()
        return Ran(left.value.code or 0, *capsys.readouterr())

    return _run


def _pixels(path):
    return np.asarray(Image.open(path))


def _distance(one, other):
    return np.abs(one.astype(int) - other.astype(int))


def _lines(text):
    return [json.loads(line) for line in text.splitlines()]


# Files, folders, globs


def test_a_file_becomes_a_file_of_its_size(here, run, model):
    ran = run("photos/a.png", "--style", "wave.png", "-o", "new/o.png")
    assert (ran.code, ran.err) == (0, "")
    stylizer = Stylizer.load(model, device="cpu")
    style = stylizer.style(Image.open("wave.png"), size=512)
    wanted = np.asarray(stylizer(Image.open("photos/a.png"), style))
    assert np.array_equal(_pixels("new/o.png"), wanted)
    head, row = ran.out.splitlines()
    assert head.split() == ["content", "style", "output", "size", "seconds", "notes"]
    assert row.split()[:4] == ["photos/a.png", "wave.png", "new/o.png", "64×48"]
    assert [path.name for path in Path("new").iterdir()] == ["o.png"]


def test_a_folder_keeps_its_tree(here, run):
    ran = run("photos", "--style", "wave.png", "-o", "out")
    assert ran.code == 0
    files = sorted(str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file())
    assert files == ["a.png", "manifest.jsonl", "trip/b.jpg"]
    assert Image.open("out/trip/b.jpg").format == "JPEG"
    assert Image.open("out/trip/b.jpg").size == (48, 64)
    assert ran.out.splitlines()[-1].startswith("2 done; ")


def test_globs_and_several_styles_give_every_pair(here, run):
    ran = run("photos/**/*.*", "--style", "wave.png", "--style", "ink.png", "-o", "out", "--json")
    assert ran.code == 0
    assert [(line["content"], line["style"], line["output"]) for line in _lines(ran.out)] == [
        ("photos/a.png", "wave.png", "out/a--wave.png"),
        ("photos/a.png", "ink.png", "out/a--ink.png"),
        ("photos/trip/b.jpg", "wave.png", "out/trip/b--wave.jpg"),
        ("photos/trip/b.jpg", "ink.png", "out/trip/b--ink.jpg"),
    ]
    assert not np.array_equal(_pixels("out/a--wave.png"), _pixels("out/a--ink.png"))


def test_pictures_of_one_name_do_not_write_one_file(here, run):
    Image.open("photos/a.png").save("photos/trip/a.png")
    ran = run("photos/a.png", "photos/trip/a.png", "--style", "wave.png", "-o", "out/", "--json")
    outputs = [line["output"] for line in _lines(ran.out)]
    assert ran.code == 0
    assert len(set(outputs)) == 2
    assert all(Path(output).is_file() for output in outputs)


def test_weights_make_one_blend_that_reaches_from_style_to_style(here, run):
    styles = ("--style", "wave.png", "--style", "ink.png")
    for weights, name in (("1,0", "first"), ("0.5,0.5", "half"), ("0,2", "second")):
        ran = run("photos/a.png", *styles, "--style-weights", weights, "-o", f"{name}.png")
        assert ran.code == 0
    run("photos/a.png", "--style", "wave.png", "-o", "wave-alone.png")
    run("photos/a.png", "--style", "ink.png", "-o", "ink-alone.png")
    first, half, second = (_pixels(f"{name}.png") for name in ("first", "half", "second"))
    # A level for rounding: deviations are mixed, and a root squared is not quite the variance.
    assert _distance(first, _pixels("wave-alone.png")).max() <= 1
    assert _distance(second, _pixels("ink-alone.png")).max() <= 1
    assert _distance(half, first).mean() > 1
    assert _distance(half, second).mean() > 1


# What the flags do


def test_alpha_and_colour_and_size_do_what_they_say(here, run):
    run("photos/a.png", "--style", "wave.png", "-o", "full.png", "--dtype", "float32")
    run("photos/a.png", "--style", "wave.png", "-o", "none.png", "--alpha", "0")
    run("photos/a.png", "--style", "ink.png", "-o", "none2.png", "--alpha", "0")
    assert np.array_equal(_pixels("none.png"), _pixels("none2.png"))
    assert not np.array_equal(_pixels("none.png"), _pixels("full.png"))
    ran = run("photos/a.png", "--style", "wave.png", "-o", "big.png", "--size", "101", "--json")
    assert (_lines(ran.out)[0]["width"], _lines(ran.out)[0]["height"]) == (101, 76)
    assert Image.open("big.png").size == (101, 76)


def test_detail_is_how_much_of_the_fine_lines_is_the_photos(here, run):
    for share in ("0", "0.4", "1"):
        arguments = ("--detail", share, "--dtype", "float32", "-o", f"d{share}.png")
        assert run("photos/a.png", "--style", "wave.png", *arguments).code == 0
    run("photos/a.png", "--style", "wave.png", "--dtype", "float32", "-o", "usual.png")
    assert np.array_equal(_pixels("usual.png"), _pixels("d0.4.png"))
    assert not np.array_equal(_pixels("d0.png"), _pixels("d0.4.png"))
    assert not np.array_equal(_pixels("d1.png"), _pixels("d0.4.png"))
    ran = run("photos/a.png", "--style", "wave.png", "--detail", "1.5", "-o", "no.png")
    assert ran.code == 2
    assert "--detail" in ran.err


def test_luma_keeps_the_photos_hues(here, run):
    run("photos/a.png", "--style", "wave.png", "-o", "luma.png", "--preserve-color", "luma")
    run("photos/a.png", "--style", "wave.png", "-o", "full.png", "--dtype", "float32")

    def chroma(path):
        pixels = _pixels(path).astype(float)
        return pixels - (pixels @ [0.299, 0.587, 0.114])[..., None]

    photo, luma, full = (chroma(p).ravel() for p in ("photos/a.png", "luma.png", "full.png"))
    likeness = np.corrcoef([photo, luma, full])[0, 1:]
    assert likeness[0] > 0.8
    assert likeness[0] > likeness[1]


def _edges(path):
    return np.diff(_pixels(path).astype(float).mean(2)).ravel()


def test_color_only_takes_the_paintings_colours_and_keeps_every_edge(here, run):
    arguments = ("photos/a.png", "--style", "wave.png", "--color-only")
    assert run(*arguments, "-o", "color.png").code == 0
    assert run(*arguments[:-1], "--colour-only", "-o", "colour.png").code == 0
    assert run(*arguments, "-o", "none.png", "--alpha", "0").code == 0
    assert np.array_equal(_pixels("color.png"), _pixels("colour.png"))
    assert np.array_equal(_pixels("none.png"), _pixels("photos/a.png"))
    photo, found, wave = (
        _pixels(path).mean((0, 1)) for path in ("photos/a.png", "color.png", "wave.png")
    )
    assert np.abs(found - wave).max() < np.abs(photo - wave).max() / 3
    assert np.corrcoef(_edges("color.png"), _edges("photos/a.png"))[0, 1] > 0.9


def test_photo_takes_colours_of_what_would_be_painted_and_keeps_every_edge(here, run):
    arguments = ("photos/a.png", "--style", "wave.png", "--dtype", "float32")
    run(*arguments, "-o", "painted.png", "--method", "ot")
    assert run(*arguments, "-o", "photo.png", "--method", "ot", "--photo").code == 0
    assert run(*arguments, "-o", "other.png", "--photo").code == 0
    assert run(*arguments, "-o", "none.png", "--photo", "--alpha", "0").code == 0
    assert np.array_equal(_pixels("none.png"), _pixels("photos/a.png"))
    painted, found, photo = (
        _pixels(path).mean((0, 1)) for path in ("painted.png", "photo.png", "photos/a.png")
    )
    assert np.abs(found - painted).max() < np.abs(photo - painted).max() / 3
    likeness = [
        np.corrcoef(_edges(path), _edges("photos/a.png"))[0, 1]
        for path in ("photo.png", "painted.png")
    ]
    assert likeness[0] > 0.85 > likeness[1]
    assert _distance(_pixels("other.png"), _pixels("photo.png")).max() > 3  # --method counts


def test_modes_have_masks_and_a_recipe_of_their_own(here, run):
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :30] = 255
    Image.fromarray(mask).save("left.png")
    for flag in ("--color-only", "--photo"):
        arguments = ("photos/a.png", "--style", "wave.png", flag)
        assert run(*arguments, "--mask", "left.png", "-o", f"{flag}.png").code == 0
        made, photo = _pixels(f"{flag}.png"), _pixels("photos/a.png")
        assert np.array_equal(made[:, 30:], photo[:, 30:])
        assert _distance(made[:, :30], photo[:, :30]).mean() > 5
    for flags, code in (([], 0), (["--color-only"], 1), ([], 0)):
        ran = run("photos/trip/", "--style", "wave.png", "-o", "folder/", *flags)
        assert ran.code == code, ran.err
    assert (
        "with other options"
        in run("photos/trip/", "--style", "wave.png", "-o", "folder/", "--photo").err
    )


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--photo", "--color-only"), "--photo and --color-only"),
        (("--photo", "--preserve-color", "luma"), "--photo and --preserve-color luma"),
        (("--color-only", "--preserve-color", "luma"), "--color-only and --preserve-color luma"),
        (("--photo", "--runtime", "onnx"), "--photo: --runtime onnx"),
        (("--compile", "--runtime", "onnx"), "--compile: --runtime onnx"),
    ],
)
def test_modes_that_exclude_each_other_are_named(here, run, flags, names):
    ran = run("photos/a.png", "--style", "wave.png", "-o", "out.png", *flags)
    assert ran.code == 2
    assert names in ran.err


def test_a_blend_for_a_method_is_drawn(here, run):
    styles = ("--style", "wave.png", "--style", "ink.png", "--dtype", "float32")
    for method in ("ot", "wct", "cholesky"):
        chosen = ("--method", method, "-o", f"{method}.png")
        assert run("photos/a.png", *styles, "--style-weights", "0,1", *chosen).code == 0
        run("photos/a.png", *styles[2:], "--method", method, "-o", "alone.png", "--overwrite")
        assert _distance(_pixels(f"{method}.png"), _pixels("alone.png")).max() <= 1


def test_compile_without_a_gpu_says_so_and_paints_the_same(here, run):
    style = ("--style", "wave.png")
    assert run("photos/a.png", *style, "-o", "plain.png").code == 0
    with pytest.warns(UserWarning, match="--compile: is for a CUDA device, not cpu"):
        assert run("photos/a.png", *style, "-o", "compiled.png", "--compile").code == 0
    assert np.array_equal(_pixels("plain.png"), _pixels("compiled.png"))


def test_transparency_comes_through(here, run):
    photo = Image.open("photos/a.png").convert("RGBA")
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    photo.putalpha(Image.fromarray(alpha))
    photo.save("clear.png")
    assert run("clear.png", "--style", "wave.png", "-o", "o.png").code == 0
    assert Image.open("o.png").mode == "RGBA"
    assert np.array_equal(_pixels("o.png")[..., 3], alpha)


def test_quality_and_half_precision(here, run):
    for quality in ("5", "95"):
        run("photos/a.png", "--style", "wave.png", "-o", f"{quality}.jpg", "--quality", quality)
    assert Path("5.jpg").stat().st_size < Path("95.jpg").stat().st_size
    run("photos/a.png", "--style", "wave.png", "-o", "full.png", "--dtype", "float32")
    ran = run("photos/a.png", "--style", "wave.png", "-o", "half.png", "--dtype", "bfloat16")
    assert ran.code == 0
    assert 0 < _distance(_pixels("half.png"), _pixels("full.png")).mean() < 6


# Standard input and output


def test_stdin_to_stdout_holds_the_picture_and_nothing_else(here, model):
    command = ["stylize", "-", "--style", "wave.png", "-o", "-", "--model", model]
    picture = Path("photos/trip/b.jpg").read_bytes()
    result = CliRunner().invoke(app, [*command, "--device", "cpu"], input=picture)
    assert result.exit_code == 0
    assert result.stderr == ""
    image = Image.open(io.BytesIO(result.stdout_bytes))
    image.load()
    assert (image.format, image.size) == ("JPEG", (48, 64))


def test_a_note_for_stdout_goes_to_stderr(here, model):
    Image.open("photos/a.png").save("a.gif", save_all=True, append_images=[Image.open("ink.png")])
    command = ["stylize", "a.gif", "--style", "wave.png", "-o", "-", "--model", model]
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 0
    assert result.stderr == "note: a.gif: first of 2 frames\n"
    assert Image.open(io.BytesIO(result.stdout_bytes)).format == "PNG"


def test_json_and_a_picture_do_not_share_stdout(here, run):
    ran = run("photos/a.png", "--style", "wave.png", "-o", "-", "--json")
    assert (ran.code, ran.out) == (2, "")
    assert "--json and -o -" in ran.err


# Failing, going on, running again


def test_a_bad_picture_among_good_ones(here, run):
    Path("photos/bad.png").write_bytes(Path("photos/a.png").read_bytes()[:200])
    styles = ("--style", "wave.png", "--style", "ink.png")
    ran = run("photos", "gone.jpg", *styles, "-o", "out", "--json")
    assert ran.code == 1
    errors = ran.err.splitlines()
    assert [line.split(": ")[:2] for line in errors] == [
        ["error", "photos/bad.png"],
        ["error", "gone.jpg"],
    ]
    results = _lines(ran.out)
    assert [line["status"] for line in results] == ["done"] * 2 + ["failed"] * 2 + ["done"] * 2 + [
        "failed"
    ] * 2
    assert results[2]["error"] == errors[0].removeprefix("error: ")
    assert "error" not in results[0]
    assert Path("out/trip/b--ink.jpg").is_file()


def test_json_has_what_a_script_needs(here, run):
    ran = run("photos/a.png", "--style", "wave.png", "-o", "o.jpg", "--json", "--quiet")
    (line,) = _lines(ran.out)
    assert line.pop("seconds") > 0
    assert line == {
        "content": "photos/a.png",
        "style": "wave.png",
        "output": "o.jpg",
        "status": "done",
        "width": 64,
        "height": 48,
        "notes": [],
    }


def test_quiet_prints_errors_only(here, run):
    Path("photos/bad.png").write_text("")
    ran = run("photos", "--style", "wave.png", "-o", "out", "--quiet")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: photos/bad.png: is empty; take another copy\n"


def test_running_again_keeps_what_is_there(here, run):
    command = ("photos", "--style", "wave.png", "-o", "out")
    assert run(*command).code == 0
    entries = _lines(Path("out/manifest.jsonl").read_text())
    assert [entry["output"] for entry in entries] == ["a.png", "trip/b.jpg"]
    Path("out/a.png").unlink()
    again = run(*command)
    assert again.code == 0
    lines = [line.split() for line in again.out.splitlines()]
    assert (lines[1][0], lines[1][-1]) == ("photos/a.png", lines[1][4])
    assert (lines[2][0], lines[2][-1]) == ("photos/trip/b.jpg", "kept")
    assert again.out.splitlines()[-1].startswith("1 done, 1 kept; ")
    assert run(*command).out.splitlines()[-1] == "2 kept"
    other = run(*command, "--alpha", "0.5")
    assert other.code == 1
    assert other.err.count("--overwrite replaces it") == 2
    assert run(*command, "--alpha", "0.5", "--overwrite").code == 0


def test_a_file_that_exists_is_not_replaced(here, run):
    Path("o.png").write_text("precious")
    ran = run("photos/a.png", "--style", "wave.png", "-o", "o.png")
    assert ran.code == 1
    assert ran.err == "error: o.png: exists already; --overwrite replaces it\n"
    assert Path("o.png").read_text() == "precious"
    assert run("photos/a.png", "--style", "wave.png", "-o", "o.png", "--overwrite").code == 0


def test_a_long_table_ends_with_what_is_left_out(here, run):
    for number in range(52):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(f"photos/{number}.png")
    ran = run("photos/*.png", "--style", "wave.png", "-o", "out")
    assert ran.out.splitlines()[-2] == "… and 3 more"
    assert ran.out.splitlines()[-1].startswith("53 done; ")


def test_a_name_that_is_no_text_is_no_trouble(here, run):
    name = b"photos/\xff.png"
    try:
        Path(name.decode(errors="surrogateescape")).write_bytes(Path("photos/a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes text only")
    assert run("photos/*.png", "--style", "wave.png", "-o", "out").code == 0
    assert run("photos/*.png", "--style", "wave.png", "-o", "json", "--json").code == 0
    assert len(list(Path("out").glob("*.png"))) == 2


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/a.png", "-o", "o.png"], "--style is missing"),
        (["photos/a.png", "--style", "wave.png"], "-o is missing"),
        (["photos/a.png", "--style", "wave.png", "-o", "o.png", "--alpha", "2"], "--alpha 2.0"),
        (["photos/a.png", "--style", "wave.png", "-o", "o.png", "--alpha", "nan"], "--alpha nan"),
        (["photos/a.png", "--style", "wave.png", "-o", "o.png", "--size", "big"], "--size"),
        (["photos/a.png", "--style", "wave.png", "-o", "o.psd"], "cannot write .psd"),
        (
            ["photos/a.png", "--style", "wave.png", "-o", "o.png", "--style-weights", "1,2"],
            "2 weights for 1 styles",
        ),
        (["photos", "--style", "wave.png", "-o", "o.png"], "one file cannot hold 2 results"),
        (["photos", "--style", "wave.png", "-o", "-"], "standard output cannot hold 2 results"),
        (["photos/a.png", "--style", "wave.png", "-o", "wave.png"], "is a style of this job"),
        (["--style", "wave.png", "-o", "o.png"], "CONTENT"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(here, run, arguments, message):
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_wrong_usage_reaches_a_caller_as_an_exception(here):
    result = CliRunner().invoke(app, ["stylize", "photos/a.png", "--style", "wave.png"])
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/a.png", "--style", "gone.png", "-o", "o.png"], "gone.png: no such style file"),
        (
            ["photos/a.png", "--style", "preset:no-such", "-o", "o.png"],
            "has no presets; give --style",
        ),
        (["empty", "--style", "wave.png", "-o", "o.png"], "empty: no pictures there"),
        (["*.tif", "--style", "wave.png", "-o", "o.png"], "*.tif: no pictures there"),
        (["photos/a.png", "--style", "wave.png", "-o", "wave.png/o.png"], "wave.png is a file"),
    ],
)
def test_what_makes_the_whole_job_impossible_is_one_line(here, run, arguments, message):
    Path("empty").mkdir()
    ran = run(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_a_device_that_is_not_there(here, run):
    ran = run("photos/a.png", "--style", "wave.png", "-o", "o.png", "--device", "abacus")
    assert ran.code == 2
    assert ran.err == "error: --device 'abacus': must be auto, cpu, cuda, cuda:N or mps\n"


# Interrupts


def test_an_interrupt_keeps_what_is_finished(here, run, monkeypatch):
    original, calls = Stylizer.__call__, []

    def interrupted(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(Stylizer, "__call__", interrupted)
    ran = run("photos", "--style", "wave.png", "-o", "out")
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "interrupted: 1 finished and kept"
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "manifest.jsonl"]
    assert [entry["output"] for entry in _lines(Path("out/manifest.jsonl").read_text())] == [
        "a.png"
    ]
    monkeypatch.setattr(Stylizer, "__call__", original)
    again = run("photos", "--style", "wave.png", "-o", "out", "--json")
    assert [line["status"] for line in _lines(again.out)] == ["kept", "done"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_console_script_stops_at_ctrl_c(here, model):
    command = [sys.executable, "-m", "normapps.cli.main", "stylize", "photos", "-"]
    command += ["--style", "wave.png", "-o", "out", "--model", model, "--device", "cpu"]
    # It waits for standard input, which never comes, after the pictures of the folder.
    # A suite that runs in the background of a shell ignores Ctrl-C, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    job = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    manifest = Path("out/manifest.jsonl")
    limit = time.monotonic() + 100
    while not (manifest.exists() and manifest.read_text().count("\n") == 2):
        assert job.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    job.wait(timeout=60)  # before its standard input is closed, whose end would be an error
    out, err = job.communicate()
    assert job.returncode == 130
    assert err.splitlines()[-1] == "interrupted: 2 finished and kept"
    assert "Traceback" not in err
    assert "2 done" in out
    for entry in _lines(manifest.read_text()):
        Image.open(Path("out", entry["output"])).load()


def test_the_table_is_aligned_in_columns_of_a_terminal(here, run):
    for name in ("photos/ключ.png", "photos/写真.png", "photos/e\u0301.png"):
        Path(name).write_bytes(Path("photos/a.png").read_bytes())
    lines = run("photos/*.png", "--style", "wave.png", "-o", "out").out.splitlines()
    wide = {"写": 2, "真": 2, "\u0301": 0}
    ends = {
        sum(wide.get(each, 1) for each in line[: line.index("wave.png")]) for line in lines[1:5]
    }
    assert ends == {lines[0].index("style")}
    assert {line.split()[3] for line in lines[1:5]} == {"64×48"}


def test_a_name_moves_no_cursor(here, run):
    Path("photos/a\x1b[2J\n.png").write_bytes(Path("photos/a.png").read_bytes())
    ran = run("photos/*.png", "--style", "wave.png", "-o", "out")
    assert "photos/a?[2J?.png" in ran.out
    assert "\x1b" not in ran.out
