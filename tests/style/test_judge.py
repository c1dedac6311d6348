"""`style evaluate`'s own part: the network and method that the options name are what is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normapps.data.images import Picture
from normapps.errors import InputError
from normapps.models.vgg import Vgg19
from normapps.style import judge as judging
from normapps.style.options import METHODS, EvaluateOptions
from normapps.style.quality import score
from normapps.style.stylizer import Stylizer


@pytest.mark.parametrize("method", METHODS)
def test_the_report_is_of_the_method_that_is_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    random_vgg: Vgg19,
    photos: dict[str, np.ndarray],
    method: str,
) -> None:
    photo, painting = photos["rocket"][:48, :64], photos["coffee"][:64, :48]
    for kind, pixels in (("photos", photo), ("paintings", painting)):
        (tmp_path / kind).mkdir()
        for i in range(2):
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    monkeypatch.setattr(judging, "load_vgg19", lambda *_: random_vgg)
    options = EvaluateOptions(
        contents=(str(tmp_path / "photos"),), styles=(str(tmp_path / "paintings"),),
        hold_out=0, pairs=2, size=64, method=method, alpha=0.5, device="cpu",
    )  # fmt: skip
    report = judging.judge(options)
    stylizer = Stylizer.load("adain-tiny", device="cpu")
    style = stylizer.style(Picture(painting), size=64)
    outputs = {
        name: stylizer(Picture(photo), style, alpha=0.5, method=name).pixels for name in METHODS
    }
    assert report.rows[0].scores == score(outputs[method], photo, painting, random_vgg)
    assert len({pixels.tobytes() for pixels in outputs.values()}) == len(METHODS)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="--method"):
        EvaluateOptions(contents=("a",), styles=("b",), method="gram")
