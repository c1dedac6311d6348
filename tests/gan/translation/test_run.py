"""Opening translators, and pictures of any size through them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from normapps.data.images import write_image
from normapps.data.picture import Picture
from normapps.errors import InputError, UsageError
from normapps.gan.translation import run
from normapps.gan.translation.options import TranslateRunOptions
from normapps.gan.translation.run import PictureTranslator, open_translator, shrunk
from normapps.models.folder import save_model
from normapps.models.small import small_cnn
from normapps.models.translator import adalin_generator


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two generators: one adds 0.2, the way back takes 0.2."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "options.json").write_text("{}")
    for name, change in (("generator", 0.2), ("generator-back", -0.2)):
        network = adalin_generator(3, 4, 1)
        torch.nn.init.constant_(network.get_parameter("image.bias"), change)
        save_model(
            folder / name,
            network,
            builder="adalin-generator",
            arguments={"width": 4, "blocks": 1},
            preprocessing={"size": 16},
        )
    return folder


def photo(height: int, width: int, alpha: bool = False) -> Picture:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 190, (height, width, 3), np.uint8)
    mask = rng.integers(0, 256, (height, width), np.uint8) if alpha else None
    return Picture(pixels, mask, "PNG", ("a note",))


def opened(spec: Path | str, back: bool = False) -> PictureTranslator:
    found = open_translator(str(spec), back=back, device="cpu")
    assert isinstance(found, PictureTranslator)
    return found


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (5, 90), (1, 1), (50, 2)])
def test_pictures_keep_their_size(trained: Path, size: tuple[int, int]) -> None:
    picture = photo(*size)
    made = opened(trained)(picture)
    wanted = picture.pixels.astype(float) + 0.2 * 127.5
    assert np.abs(made.pixels.astype(float) - wanted).max() <= 1
    assert made.format == "PNG"
    assert "a note" in made.notes


def test_the_way_back_and_model_folders(trained: Path) -> None:
    picture = photo(16, 16)
    back = opened(trained, back=True)(picture).pixels.astype(float)
    assert np.abs(back - (picture.pixels - 0.2 * 127.5)).max() <= 1
    named = opened(trained / "generator-back")
    assert np.array_equal(named(picture).pixels, back)
    assert named.fingerprint == opened(trained, back=True).fingerprint
    assert named.fingerprint != opened(trained).fingerprint


def test_alpha_is_kept(trained: Path) -> None:
    picture = photo(20, 30, alpha=True)
    assert np.array_equal(opened(trained)(picture).alpha, picture.alpha)


def test_the_long_side_is_brought_down_and_never_up(trained: Path) -> None:
    picture = photo(40, 60, alpha=True)
    made = opened(trained)(picture, 30)
    assert made.size == (30, 20)
    assert made.alpha is not None
    assert made.alpha.shape == (20, 30)
    assert opened(trained)(picture, 100).size == (60, 40)
    assert shrunk(picture, None) is picture


def test_it_knows_at_which_size_it_was_trained(trained: Path) -> None:
    assert opened(trained).trained_at == 16
    assert opened(trained)(photo(68, 64)).notes == ("a note",)


def test_tensors_of_any_size_and_no_gradients(trained: Path) -> None:
    translator = opened(trained)
    x = torch.rand(1, 3, 18, 21, requires_grad=True)
    out = translator.translate(x)
    assert out.shape == x.shape
    assert not out.requires_grad
    torch.testing.assert_close(out, (x.detach() + 0.2).clamp(-1, 1))


def test_what_is_too_large_is_refused_with_a_size_that_is_not(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = opened(trained)
    with pytest.raises(InputError, match=r"40×50 pixels .* limit of 1000; --size 35, or --max-p"):
        translator(photo(50, 40), most=1000)
    assert translator(photo(50, 40), 35, 1000).size == (28, 35)
    monkeypatch.setattr(run, "MOST", 1000)
    options = TranslateRunOptions(model="m", output="o")
    write_image(photo(50, 40), tmp_path / "large.png")
    with pytest.raises(InputError, match="--max-pixels 2000, which needs"):
        translator.file(tmp_path / "large.png", options)
    allowed = replace(options, max_pixels=2000)
    assert translator.file(tmp_path / "large.png", allowed).size == (40, 50)


def test_what_translates_nothing_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_translator(str(tmp_path / "none"))
    with pytest.raises(InputError, match="is no run"):
        open_translator(str(tmp_path))
    arguments = {"num_classes": 2, "width": 4}
    save_model(tmp_path / "m", small_cnn(**arguments), builder="small-cnn", arguments=arguments)
    with pytest.raises(InputError, match="is a small-cnn, which translates nothing"):
        open_translator(str(tmp_path / "m"))
    (tmp_path / "options.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no generator yet; .* --resume"):
        open_translator(str(tmp_path))
    with pytest.raises(UsageError, match=r"--back: .* is one model"):
        open_translator(str(trained / "generator"), back=True)
