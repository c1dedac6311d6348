from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from normapps.data.manifest import Manifest, identify, is_same
from normapps.errors import InputError


def _lines(folder: Path) -> list[dict]:
    text = (folder / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_entries_are_on_disk_at_once_and_read_again(tmp_path):
    manifest = Manifest(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    manifest.add(tmp_path / "out" / "trip" / "é.png", {"status": "done", "seconds": 0.5})
    assert _lines(tmp_path / "out") == [
        {"output": "trip/é.png", "status": "done", "seconds": 0.5},
    ]
    again = Manifest(tmp_path / "out")
    assert again.get(tmp_path / "out" / "trip" / "é.png") == _lines(tmp_path / "out")[0]
    assert again.get(tmp_path / "out" / "é.png") is None
    assert len(again) == 1


def test_the_last_entry_about_an_output_counts_and_close_leaves_only_it(tmp_path):
    manifest = Manifest(tmp_path)
    for number, name in enumerate(("a.png", "b.png", "a.png")):
        manifest.add(tmp_path / name, {"number": number})
    assert [line["number"] for line in _lines(tmp_path)] == [0, 1, 2]
    assert Manifest(tmp_path).get(tmp_path / "a.png")["number"] == 2
    manifest.close()
    assert {line["output"]: line["number"] for line in _lines(tmp_path)} == {"a.png": 2, "b.png": 1}
    assert len(_lines(tmp_path)) == 2


def test_closing_again_or_without_entries_writes_nothing(tmp_path):
    Manifest(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
    manifest = Manifest(tmp_path)
    manifest.add(tmp_path / "a.png", {})
    before = manifest.path.stat().st_ino
    manifest.close()
    assert manifest.path.stat().st_ino == before


def test_a_name_that_is_no_text_comes_back(tmp_path):
    name = os.fsdecode(b"\xff.png")
    Manifest(tmp_path).add(tmp_path / name, {"content": name})
    assert Manifest(tmp_path).get(tmp_path / name)["content"] == name


def test_rewriting_keeps_what_another_job_added(tmp_path):
    ours = Manifest(tmp_path)
    ours.add(tmp_path / "a.png", {"by": "us"})
    Manifest(tmp_path).add(tmp_path / "b.png", {"by": "them"})
    ours.add(tmp_path / "a.png", {"by": "us again"})
    ours.close()
    assert {(line["output"], line["by"]) for line in _lines(tmp_path)} == {
        ("a.png", "us again"),
        ("b.png", "them"),
    }


@pytest.mark.parametrize("rest", [b'{"output": "b.pn', b'{"output": "b.png", "name": "\xc3'])
def test_a_line_torn_by_a_kill_is_dropped(tmp_path, rest):
    whole = b'{"output": "a.png"}\n'
    (tmp_path / "manifest.jsonl").write_bytes(whole + rest)
    manifest = Manifest(tmp_path)
    assert manifest.get(tmp_path / "b.png") is None
    manifest.add(tmp_path / "c.png", {})
    assert [line["output"] for line in _lines(tmp_path)] == ["a.png", "c.png"]


@pytest.mark.parametrize("text", ["hello\n", '{"name": "x"}\n', "[1]\n", "3\n"])
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.jsonl: line 1 .*; move the file away"):
        Manifest(tmp_path)
    assert (tmp_path / "manifest.jsonl").read_text() == text


def test_an_unreadable_one_is_named(tmp_path):
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "manifest.jsonl"))):
        Manifest(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    manifest = Manifest(tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot be written"):
        manifest.add(tmp_path / "file" / "out" / "a.png", {})


def test_made_knows_a_file_by_any_path_and_only_finished_ones(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    manifest = Manifest(folder)
    assert not manifest.made(folder / "a.png")
    manifest.add(folder / "sub" / "a.png", {"status": "done"})
    manifest.add(folder / "b.png", {"status": "failed"})
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert manifest.made(folder / "sub" / "a.png")
    assert manifest.made("sub/a.png")
    assert manifest.made(tmp_path / "link" / "sub" / "a.png")
    assert not manifest.made("a.png")
    assert not manifest.made("b.png")


def test_a_file_is_the_same_by_its_time_or_by_its_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    known = identify(path)
    assert known["size"] == 5
    assert known["sha256"] == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    assert is_same(path, known)
    os.utime(path, ns=(1, 1))
    assert is_same(path, known)
    path.write_bytes(b"54321")
    os.utime(path, ns=(2, 2))
    assert not is_same(path, known)
    path.write_bytes(b"123456")
    assert not is_same(path, identify(path) | {"size": 5})
    path.unlink()
    assert not is_same(path, known)
