"""Pictures of a quantization: none both calibrates and judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.errors import InputError
from normapps.models.preprocessing import Preprocessing
from normapps.quant.options import QuantizeOptions
from normapps.quant.pictures import Seen, see

SMALL = Preprocessing(size=(4, 4), resize=(4, 4), mean=(0.0,), std=(1.0,), channels=1)
LOGITS = torch.zeros(2, 10)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures, each of a grey of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(9):
        Image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def _seen(place: Path, **how: Any) -> Seen:
    found = see(QuantizeOptions(data=str(place), batch_size=4, **how), SMALL, LOGITS, None)
    assert found is not None
    return found


def _greys(batches: Any) -> list[int]:
    images = [each[0] if isinstance(each, tuple) else each for each in batches]
    return sorted(round(float(grey) * 255 / 20) for batch in images for grey in batch[:, 0, 0, 0])


@pytest.mark.parametrize(("calibration", "count"), [(3, 3), (4, 4), (5, 4), (128, 4)])
def test_some_calibrate_and_all_others_judge(place: Path, calibration: int, count: int) -> None:
    found = _seen(place, calibration=calibration)
    first, rest = _greys(found.calibration()), _greys(found.judged())
    assert (len(first), found.judging) == (count, 9 - count)
    assert sorted(first + rest) == list(range(9))


def test_without_data_all_judge_and_one_is_counted_as_one(place: Path) -> None:
    found = _seen(place, data_free=True)
    assert _greys(found.judged()) == list(range(9))
    assert found.describe() == f"{place}: 9 pictures judge"
    few = _seen(place, limit=2)
    assert few.describe() == f"{place}: 1 picture calibrates, 1 other judges"


def test_a_picture_that_would_calibrate_and_judge_is_refused(place: Path, tmp_path: Path) -> None:
    link = tmp_path / "other"
    link.symlink_to(place)
    listed = tmp_path / "some.txt"
    listed.write_text(f"{place / '2.png'}\n")
    for test, count in ((place, "9 of 9"), (link, "9 of 9"), (listed, "1 of 1")):
        with pytest.raises(InputError, match=f"{count} pictures are in --data .* none may calibr"):
            _seen(place, test=str(test))
    apart = tmp_path / "apart"
    apart.mkdir()
    Image.new("L", (4, 4), 200).save(apart / "x.png")
    found = _seen(place, test=str(apart))
    assert found.describe() == f"{place}: 9 pictures calibrate; {apart}: 1 picture judges"
    assert _greys(found.judged()) == [10]


def test_one_picture_is_not_enough(place: Path) -> None:
    with pytest.raises(InputError, match="has one picture; give two at least"):
        _seen(place / "1.png")
