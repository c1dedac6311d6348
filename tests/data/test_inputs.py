from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normapps.data.inputs import Input, find_inputs, is_folder_output, plan_outputs
from normapps.errors import InputError, UsageError


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _names(inputs: list[Input]) -> list[str]:
    return [item.name.as_posix() for item in inputs]


def _file(path: str, name: str | None = None) -> Input:
    return Input(Path(path), Path(name or Path(path).name))


def _planned(inputs: list[Input], styles: list[str], out: str, multiple: bool = True) -> list[str]:
    plan = plan_outputs(inputs, styles, out, multiple=multiple)
    return [path.as_posix() for _, _, path in plan if path is not None]


def test_a_folder_is_searched_recursively_in_sorted_order(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a.JPG", "sub/c.webp", "sub/deep/d.heic", "notes.txt")
    inputs = find_inputs([str(tmp_path)])
    assert _names(inputs) == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.heic"]
    assert [item.path for item in inputs] == [tmp_path / item.name for item in inputs]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    _touch(tmp_path, ".hidden.jpg", ".thumbs/a.jpg", "shown.jpg")
    assert _names(find_inputs([str(tmp_path)])) == ["shown.jpg"]


def test_a_hidden_file_that_is_named_is_taken(tmp_path: Path) -> None:
    _touch(tmp_path, ".hidden.jpg")
    assert _names(find_inputs([str(tmp_path / ".hidden.jpg")])) == [".hidden.jpg"]


def test_a_glob_is_expanded_and_keeps_the_tree_under_its_fixed_part(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.txt", "s/c.jpg", "s/t/c.jpg")
    assert _names(find_inputs([str(tmp_path / "*.jpg")])) == ["a.jpg"]
    assert _names(find_inputs([str(tmp_path / "*")])) == ["a.jpg", "s/c.jpg", "s/t/c.jpg"]
    assert _names(find_inputs([str(tmp_path / "s" / "**" / "c.jpg")])) == ["c.jpg", "t/c.jpg"]


def test_a_glob_cannot_name_a_result_outside_the_folder(tmp_path: Path) -> None:
    _touch(tmp_path, "x.jpg", "s/t/y.jpg")
    assert _names(find_inputs([f"{tmp_path}/s/*/../../x.jpg"])) == ["x.jpg"]


def test_a_relative_glob_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "in/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_inputs(["in/*.jpg"]) == [Input(Path("in/a.jpg"), Path("a.jpg"))]
    assert find_inputs(["*/a.jpg"]) == [Input(Path("in/a.jpg"), Path("in/a.jpg"))]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    _touch(tmp_path, "x[1].jpg", "x1.jpg")
    assert _names(find_inputs([str(tmp_path / "x[1].jpg")])) == ["x[1].jpg"]


def test_the_same_file_counts_once(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg")
    arguments = [str(tmp_path / "b.jpg"), str(tmp_path), f"{tmp_path}/./b.jpg", "-", "-"]
    assert _names(find_inputs(arguments)) == ["b.jpg", "a.jpg", "stdin"]


def test_standard_input_has_no_path() -> None:
    assert find_inputs(["-"]) == [Input(None, Path("stdin"))]


def test_a_missing_file_is_left_to_the_reader(tmp_path: Path) -> None:
    assert find_inputs([str(tmp_path / "no.jpg")])[0].path == tmp_path / "no.jpg"


@pytest.mark.parametrize("argument", ["", "*.jpg"])
def test_nothing_found_is_an_error_that_names_the_argument(tmp_path: Path, argument: str) -> None:
    _touch(tmp_path, "empty/readme.txt", "good/a.jpg")
    where = str(tmp_path / "empty" / argument) if argument else str(tmp_path / "empty")
    with pytest.raises(InputError, match="no pictures there") as caught:
        find_inputs([str(tmp_path / "good"), where])
    assert str(caught.value).startswith(where)
    assert "\n" not in str(caught.value)


def test_no_arguments_is_an_error() -> None:
    with pytest.raises(InputError, match="no pictures given"):
        find_inputs([])


def test_a_folder_that_cannot_be_searched_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "a.jpg", "locked/b.jpg")
    listing = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"locked: cannot be searched \(Permission denied\)"):
        find_inputs([str(tmp_path)])


def test_what_counts_as_a_folder(tmp_path: Path) -> None:
    assert is_folder_output(str(tmp_path), 1)
    assert is_folder_output("new.jpg/", 1)
    assert is_folder_output("new", 1)
    assert is_folder_output("new.d", 2)
    assert not is_folder_output("new.jpg", 1)
    assert not is_folder_output("-", 1)


def test_one_result_goes_to_the_file_or_to_standard_output() -> None:
    item = _file("a.jpg")
    assert plan_outputs([item], ["ink"], "o.png", multiple=True) == [(item, 0, Path("o.png"))]
    assert plan_outputs([item], ["ink"], "-", multiple=True) == [(item, 0, None)]


def test_a_folder_keeps_tree_and_suffix() -> None:
    inputs = [_file("in/a.JPG"), _file("in/s/b.webp", "s/b.webp"), _file("in/c.heic")]
    assert _planned(inputs, ["ink"], "out") == ["out/a.JPG", "out/s/b.webp", "out/c.jpg"]


def test_standard_input_and_unknown_suffixes_become_png() -> None:
    inputs = [Input(None, Path("stdin")), _file("scan"), _file("x.jp2")]
    assert _planned(inputs, ["ink"], "out/") == ["out/stdin.png", "out/scan.png", "out/x.png"]


def test_several_styles_are_named_in_the_file_and_stay_together() -> None:
    inputs = [_file("a.jpg"), _file("b.png")]
    plan = plan_outputs(inputs, ["ink", "sea"], "out", multiple=True)
    assert [(item, index) for item, index, _ in plan] == [
        (item, index) for item in inputs for index in (0, 1)
    ]
    assert _planned(inputs, ["ink", "sea"], "out") == [
        "out/a--ink.jpg",
        "out/a--sea.jpg",
        "out/b--ink.png",
        "out/b--sea.png",
    ]


def test_a_blend_is_one_result_an_input() -> None:
    plan = plan_outputs([_file("a.jpg")], ["ink", "sea"], "o.jpg", multiple=False)
    assert plan == [(_file("a.jpg"), 0, Path("o.jpg"))]


def test_style_names_are_made_fit_for_files_and_numbered() -> None:
    styles = ["preset:ink", "art/ink", "Ink", "ink", "..", 'a"b<c>']
    stems = [Path(path).stem for path in _planned([_file("a.jpg")], styles, "out")]
    assert stems == ["a--preset-ink", "a--art-ink", "a--Ink", "a--ink-2", "a--style", "a--a-b-c"]


@pytest.mark.parametrize("out", ["o.jpg", "o.HEIC", "-"])
def test_several_results_do_not_fit_one_file(out: str) -> None:
    with pytest.raises(UsageError, match="name a folder"):
        plan_outputs([_file("a.jpg"), _file("b.jpg")], ["ink"], out, multiple=True)


@pytest.mark.parametrize("name", ["o.jpg", "o"])
def test_an_existing_file_is_no_folder(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, name)
    with pytest.raises(UsageError, match="is a file"):
        plan_outputs([_file("a.jpg"), _file("b.jpg")], ["ink"], str(tmp_path / name), multiple=True)


def test_an_existing_folder_may_look_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "o.jpg").mkdir()
    paths = _planned([_file("a.jpg"), _file("b.jpg")], ["ink"], str(tmp_path / "o.jpg"))
    assert paths == [f"{tmp_path}/o.jpg/a.jpg", f"{tmp_path}/o.jpg/b.jpg"]


def test_two_files_of_one_name_get_their_folders_name() -> None:
    inputs = [_file("a/x.jpg"), _file("b/x.jpg"), _file("c/b/x.jpg"), _file("d/b/x.jpg")]
    assert _planned(inputs, ["ink"], "out") == [
        "out/x.jpg",
        "out/b-x.jpg",
        "out/x-2.jpg",
        "out/x-3.jpg",
    ]


def test_a_clash_below_two_folders_names_the_folder_that_was_given() -> None:
    inputs = [_file("a/s/x.jpg", "s/x.jpg"), _file("b/s/x.jpg", "s/x.jpg")]
    assert _planned(inputs, ["ink"], "out") == ["out/s/x.jpg", "out/s/b-x.jpg"]


def test_x_jpg_and_x_png_do_not_clash_but_x_heic_gives_way() -> None:
    inputs = [_file("in/x.heic"), _file("in/x.jpg"), _file("in/x.png")]
    assert _planned(inputs, ["ink"], "out") == ["out/in-x.jpg", "out/x.jpg", "out/x.png"]


def test_names_that_differ_in_case_or_unicode_form_only_clash() -> None:
    inputs = [_file("in/\u00e9.jpg"), _file("in/E\u0301.JPG"), _file("in/e.jpg")]
    paths = _planned(inputs, ["ink"], "out")
    assert paths == ["out/\u00e9.jpg", "out/in-E\u0301.JPG", "out/e.jpg"]


def test_a_style_suffix_cannot_hit_another_files_name() -> None:
    inputs = [_file("in/x.jpg"), _file("in/x--a.jpg")]
    paths = _planned(inputs, ["a--b", "b"], "out")
    assert paths == [
        "out/x--a--b.jpg",
        "out/x--b.jpg",
        "out/in-x--a--a--b.jpg",
        "out/in-x--a--b.jpg",
    ]


def test_a_folder_called_like_a_file_does_not_take_its_place() -> None:
    inputs = [_file("a/x.jpg"), _file("b/x.jpg/y.jpg", "x.jpg/y.jpg")]
    for order in (inputs, inputs[::-1]):
        paths = [Path(path) for path in _planned(order, ["ink"], "out")]
        assert not set(paths) & {parent for path in paths for parent in path.parents}


def test_many_clashes_are_numbered_without_searching_again() -> None:
    paths = _planned([_file(f"{n}/rgb/x.jpg") for n in range(3000)], ["ink"], "out")
    assert len(set(paths)) == 3000
    assert paths[-1] == "out/x-2999.jpg"


_stem = st.sampled_from(["x", "X", "x--a", "x-2", "a-x", "x--a--b"])
_suffix = st.sampled_from([".jpg", ".JPG", ".heic", ".png", ""])
_place = st.sampled_from(["a", "b", "b/a", "c/a"])
_paths = st.builds(lambda place, stem, suffix: f"{place}/{stem}{suffix}", _place, _stem, _suffix)


@given(
    st.lists(_paths, min_size=1, max_size=8, unique=True),
    st.lists(st.sampled_from(["a", "b", "A", "a--b", "2"]), min_size=1, max_size=3),
)
def test_no_two_results_share_a_file_and_a_rerun_gives_the_same(
    paths: list[str], styles: list[str]
) -> None:
    inputs = [_file(path) for path in paths]
    planned = _planned(inputs, styles, "out/")
    assert len({path.casefold() for path in planned}) == len(paths) * len(styles)
    assert planned == _planned(inputs, styles, "out/")
    assert all(Path(path).is_relative_to("out") for path in planned)


def test_standard_input_and_a_file_called_stdin_do_not_clash() -> None:
    inputs = [_file("in/stdin.png"), Input(None, Path("stdin"))]
    assert _planned(inputs, ["ink"], "out") == ["out/stdin.png", "out/stdin-2.png"]
