from __future__ import annotations

import json
from pathlib import Path

import pytest

from normapps.errors import InputError, NormappsError, UsageError
from normapps.style.dataset.record import Record, read_manifests

RECIPE = {"version": 1, "alpha": "1"}


def _made(out: Path, *outputs: str, part: tuple[int, int] = (1, 1)) -> Record:
    record = Record(out, RECIPE, part)
    for output in outputs:
        record.outlet.write(output, output.encode())
        record.add(output, {"source": output})
    return record


def test_what_was_recorded_is_finished_in_every_shard(tmp_path: Path) -> None:
    _made(tmp_path / "out", "a/x.jpg", part=(1, 2)).close()
    _made(tmp_path / "out", "a/y.jpg", part=(2, 2)).close()
    for part in ((1, 1), (1, 2), (3, 3)):
        record = Record(tmp_path / "out", RECIPE, part)
        found = [record.is_finished(f"a/{name}.jpg") for name in "xyz"]
        record.close()
        assert found == [True, True, False]
    assert [entry["source"] for entry in read_manifests(tmp_path / "out")] == ["a/x.jpg", "a/y.jpg"]


def test_a_torn_line_is_cut_off_and_not_finished(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg", "b.jpg").close()
    path = tmp_path / "stylize-dataset.manifest.jsonl"
    for torn in (path.read_bytes()[:-1], path.read_bytes()[:-30], b'{"outp', b""):
        path.write_bytes(torn)
        record = _made(tmp_path)
        whole = torn.count(b"\n")
        assert [record.is_finished(f"{n}.jpg") for n in "ab"] == [whole > 0, whole > 1]
        record.add("c.jpg", {})
        record.close()
        assert [json.loads(line)["output"] for line in path.read_text().splitlines()][-1] == "c.jpg"


def test_a_long_torn_line_is_cut_off(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg").close()
    path = tmp_path / "stylize-dataset.manifest.jsonl"
    path.write_bytes(path.read_bytes() + b"x" * 200_000)
    _made(tmp_path).close()
    assert len(path.read_bytes().splitlines()) == 1
    assert path.stat().st_size < 1000


def test_other_options_are_refused_by_name(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg").close()
    with pytest.raises(UsageError, match=r"its results have alpha 1, not 0\.5; .* --overwrite"):
        Record(tmp_path, RECIPE | {"alpha": "0.5"})
    with pytest.raises(UsageError, match="without --no-resume it goes on"):
        Record(tmp_path, RECIPE, resume=False)
    record = Record(tmp_path, RECIPE | {"alpha": "0.5"}, overwrite=True)
    assert not record.is_finished("a.jpg")
    record.close()
    record = Record(tmp_path, RECIPE | {"alpha": "0.5"})  # the overwriting job was killed
    assert not record.is_finished("a.jpg")
    record.close()


def test_a_shard_of_other_options_is_not_finished(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg", part=(1, 2)).close()
    _made(tmp_path, "b.jpg", part=(2, 2)).close()
    Record(tmp_path, RECIPE | {"alpha": "0.5"}, (1, 2), overwrite=True).close()
    record = Record(tmp_path, RECIPE | {"alpha": "0.5"}, (2, 2))
    assert not record.is_finished("b.jpg")
    record.close()


def test_overwriting_alone_forgets_the_shards(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg", part=(1, 2)).close()
    Record(tmp_path, RECIPE, overwrite=True).close()
    record = Record(tmp_path, RECIPE)
    assert not record.is_finished("a.jpg")
    record.close()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="no job of stylize-dataset made them"):
        Record(tmp_path, RECIPE)
    Record(tmp_path, RECIPE, overwrite=True).close()
    assert (tmp_path / "mine.txt").exists()


def test_a_shard_has_one_process(tmp_path: Path) -> None:
    record = _made(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match="another process works on this shard"):
        Record(tmp_path, RECIPE)
    Record(tmp_path, RECIPE, (1, 2)).close()
    record.close()
    Record(tmp_path, RECIPE).close()


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    record = _made(tmp_path)
    left = record.outlet.staging / "half"
    left.touch()
    record._lines.close()  # killed: nothing is tidied
    again = _made(tmp_path)
    assert again.outlet.staging.is_dir()
    assert not left.exists()
    again.close()
    assert not again.outlet.staging.exists()


def test_damaged_records_name_the_line(tmp_path: Path) -> None:
    _made(tmp_path, "a.jpg").close()
    path = tmp_path / "stylize-dataset.manifest.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(InputError, match=r"manifest\.jsonl: line 1 is not an entry"):
        Record(tmp_path, RECIPE)
    (tmp_path / "stylize-dataset.json").write_text("[")
    with pytest.raises(InputError, match=r"stylize-dataset\.json: is not the record of a job"):
        Record(tmp_path, RECIPE)


def test_a_full_disk_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _made(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(NormappsError, match="No space left on device; make room") as caught:
        record.outlet.write("a.jpg", b"")
    assert not isinstance(caught.value, InputError)
    record.close()
