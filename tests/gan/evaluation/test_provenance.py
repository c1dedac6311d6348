"""The line that goes with every score."""

from __future__ import annotations

from dataclasses import replace

from normapps.gan.evaluation.provenance import Provenance, place_words

WHOLE = Provenance(
    extractor="lite0, weights of P", sha256="ab" * 32, features=1280, real="cats, train",
    reals=6000, fakes=5000, held=2900, compared=2000, resizer="bicubic", generator="run",
    bn="standing statistics",
    average="EMA 0.999 of the parameters", stage="final, step 9 of 9", seed=3,
)  # fmt: skip


def test_everything_that_moves_a_score_is_in_the_line() -> None:
    assert WHOLE.line("FD 1.2") == (
        "extractor lite0, weights of P (sha256 abababab, 1,280 features); "
        "6,000 real (cats, train); 5,000 drawn (run); 2,000 of each for all but the Fréchet "
        "distance; resizer bicubic; standing statistics; EMA 0.999 of the parameters; final, step "
        "9 of 9; seed 3; floor FD 1.2 (2,900 real against the 3,100 others)"
    )


def test_what_is_not_known_is_said_of_a_generator_and_not_of_a_folder() -> None:
    unknown = replace(WHOLE, average="", stage="", compared=6000)
    assert "EMA not known; final or best not known; seed 3; floor not measured" in unknown.line()
    assert "of each" not in unknown.line()
    folder = replace(unknown, bn="").line()
    assert "EMA" not in folder
    assert "best" not in folder


def test_no_more_pictures_than_features_make_a_distance_singular() -> None:
    assert not WHOLE.is_singular
    assert not WHOLE.has_singular_floor
    assert replace(WHOLE, fakes=1280).is_singular
    assert replace(WHOLE, reals=1280).is_singular
    assert replace(WHOLE, held=1280).has_singular_floor
    assert replace(WHOLE, held=6000 - 1280).has_singular_floor


def test_a_place_tells_nothing_of_the_machine() -> None:
    assert place_words("/home/somebody/pictures/cats") == "…/pictures/cats"
    assert place_words("runs/a") == "runs/a"
    assert place_words("fashion-mnist") == "fashion-mnist"
