"""Drawing label maps with a trained generator: any size, any writing of the map, the latent."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from normapps.errors import InputError
from normapps.gan.translation.job import TranslateJob
from normapps.gan.translation.legend import Legend
from normapps.gan.translation.map_translator import MapTranslator, shrunk
from normapps.gan.translation.options import TranslateRunOptions
from normapps.gan.translation.run import open_translator
from normapps.models.folder import save_model
from normapps.models.spade import one_hot, spade_generator
from normapps.norm.layers.spatial import SpatialNorm

ARGUMENTS: dict[str, Any] = {"classes": 3, "size": 16, "width": 4, "ups": 2, "hidden": 4}
CODES = np.array([0, 5, 9], np.uint8)


def _model(folder: Path, latent: int = 0, kind: Any = "ids") -> str:
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, "latent": latent}
    model = spade_generator(**arguments).eval()
    for layer in model.modules():
        if isinstance(layer, SpatialNorm):
            torch.nn.init.normal_(layer.change.weight, std=0.3)
    codes = tuple(CODES.tolist())
    legend = dataclasses.asdict(Legend(kind, codes, codes))
    save_model(
        folder,
        model,
        builder="spade-generator",
        arguments=arguments,
        preprocessing={"legend": legend},
    )
    return str(folder)


def _indices(high: int, wide: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (high, wide))


def _options(model: str, **others: Any) -> TranslateRunOptions:
    return TranslateRunOptions(model=model, output="out", device="cpu", **others)


def _opened(model: str) -> MapTranslator:
    found = open_translator(model, device="cpu")
    assert isinstance(found, MapTranslator)
    return found


def test_a_map_file_becomes_the_picture_of_its_classes(tmp_path: Path) -> None:
    model, indices = _model(tmp_path / "m"), _indices(16, 24)
    Image.fromarray(CODES[indices]).save(tmp_path / "map.png")
    translator = _opened(model)
    picture = translator.file(tmp_path / "map.png", _options(model))
    expected = translator.generator(one_hot(torch.from_numpy(indices)[None], 3))[0]
    bytes_ = ((expected.detach().permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    np.testing.assert_array_equal(picture.pixels, bytes_)


def test_the_same_map_in_colours_and_from_a_stream(tmp_path: Path) -> None:
    ids, colours = _model(tmp_path / "ids"), _model(tmp_path / "colours", kind="colours")
    indices = _indices(16, 16)
    rgb = np.zeros((16, 16, 3), np.uint8)
    rgb[..., 2] = CODES[indices]
    files = []
    for pixels in (CODES[indices], rgb):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(io.BytesIO(file.getvalue()))
    first = _opened(ids).file(files[0], _options(ids))
    second = _opened(colours).file(files[1], _options(colours))
    np.testing.assert_array_equal(first.pixels, second.pixels)
    with pytest.raises(InputError, match="stdin: is a map of colours, and the network was"):
        _opened(ids).file(io.BytesIO(files[1].getvalue()), _options(ids))


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (17, 12)])
def test_a_size_off_the_stride_is_the_corner_of_the_map_continued(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    translator = _opened(_model(tmp_path / "m"))
    indices = torch.from_numpy(_indices(*shape))
    made = translator.draw(indices)
    assert made.shape == (3, *shape)
    high, wide = (-(-side // 4) * 4 for side in shape)
    rows = torch.arange(high).clamp(max=shape[0] - 1)
    columns = torch.arange(wide).clamp(max=shape[1] - 1)
    whole = translator.draw(indices[rows][:, columns])
    torch.testing.assert_close(made, whole[:, : shape[0], : shape[1]])


def test_a_seed_is_a_picture_of_a_network_with_a_latent(tmp_path: Path) -> None:
    Image.fromarray(CODES[_indices(16, 16)]).save(tmp_path / "map.png")
    model = _model(tmp_path / "m", latent=4)
    translator = _opened(model)
    made = [translator.file(tmp_path / "map.png", _options(model, seed=s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(made[0].pixels, made[1].pixels)
    assert (made[0].pixels != made[2].pixels).any()


def test_a_smaller_size_takes_the_nearest_classes() -> None:
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(shrunk(indices, 3), [[7, 9, 11], [19, 21, 23]])
    assert shrunk(indices, 6) is indices


def test_a_job_draws_a_folder_and_names_what_cannot_be_drawn(tmp_path: Path) -> None:
    model, maps = _model(tmp_path / "m"), tmp_path / "maps"
    maps.mkdir()
    for name in "abc":
        Image.fromarray(CODES[_indices(16, 16)]).save(maps / f"{name}.png")
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(maps / "b.png")
    options = TranslateRunOptions(model=model, output=str(tmp_path / "out"), device="cpu")
    results = list(TranslateJob(options, [str(maps)]))
    assert [result.status for result in results] == ["done", "failed", "done"]
    assert results[1].error.startswith(f"{maps}/b.png: holds id 77, which no map of the training")
    assert Image.open(tmp_path / "out" / "c.png").size == (16, 16)
    again = list(TranslateJob(options, [str(maps)]))
    assert [result.status for result in again] == ["kept", "failed", "kept"]


def test_what_is_too_large_or_not_there_is_refused(tmp_path: Path) -> None:
    model = _model(tmp_path / "m")
    Image.fromarray(CODES[_indices(16, 16)]).save(tmp_path / "map.png")
    translator = _opened(model)
    with pytest.raises(InputError, match="16×16 pixels are more than the limit of 200"):
        translator.file(tmp_path / "map.png", _options(model, max_pixels=200))
    with pytest.raises(InputError, match=r"none.png: cannot be read"):
        translator.file(tmp_path / "none.png", _options(model))


def test_a_model_without_a_legend_is_refused(tmp_path: Path) -> None:
    save_model(
        tmp_path / "m",
        spade_generator(**ARGUMENTS),
        builder="spade-generator",
        arguments=ARGUMENTS,
    )
    with pytest.raises(InputError, match="legend of label maps is damaged"):
        open_translator(str(tmp_path / "m"), device="cpu")
