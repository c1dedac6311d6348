"""Evaluations of generators and of folders, small but whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from normapps.errors import InputError
from normapps.gan.evaluation.evaluate import Evaluation, evaluate
from normapps.gan.evaluation.extractors import open_extractor
from normapps.gan.evaluation.frechet import feature_moments, frechet_distance
from normapps.gan.evaluation.options import EvaluateOptions
from normapps.gan.opening import RUNNING, open_generator
from normapps.gan.sampling import latents, sample
from normapps.models.folder import build, save_model
from normapps.norm.population import Population, apply_

SEES = {"num_classes": 5, "channels": 1, "size": 28, "width": 2}
DRAWS = {"size": 28, "channels": 1, "latent": 6, "width": 4}


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images[:count] * 15).astype(np.uint8), found.target[:count].astype(np.int64)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("extractor") / "net"
    made = build("small-cnn", SEES, seed=0)
    return str(save_model(folder, made, builder="small-cnn", arguments=SEES))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images, labels = digits(150)
    np.savez(path, x_train=images[:120], y_train=labels[:120], x_test=images[120:],
             y_test=labels[120:])  # fmt: skip
    return str(path)


def generator(folder: Path, data: str = "", classes: int = 0, names: tuple[str, ...] = ()) -> Path:
    """A model folder as `gan train` writes it, whose running statistics are others."""
    arguments = DRAWS | {"num_classes": classes, "norm": "cbn" if classes else "bn"}
    made = build("sngan-generator", arguments, seed=1)
    trained = {"data": data, "ema": 0.999, "steps": 9}
    save_model(
        folder,
        made,
        builder="sngan-generator",
        arguments=arguments,
        preprocessing={"classes": list(names)},
        history=[{"trained": "normapps gan train", "step": 9, "options": trained}],
    )
    for name, value in made.named_buffers():
        if name.endswith("running_mean"):
            value.add_(1)
    Population.of(made).save(folder / RUNNING)
    return folder


def options(extractor: str, **values: Any) -> EvaluateOptions:
    few: dict[str, Any] = {"fakes": 40, "subset_size": 20, "subsets": 3, "batch_size": 32,
                           "splits": 2, "device": "cpu"}  # fmt: skip
    return EvaluateOptions(extractor=extractor, **(few | values))


def distance(extractor: str, fakes: Tensor) -> float:
    """The Fréchet distance from all training pictures of `data`."""
    large = [Image.fromarray(x).resize((28, 28), Image.Resampling.LANCZOS) for x in digits(120)[0]]
    real = torch.from_numpy(np.stack(list(map(np.asarray, large))))[:, None]
    sees = open_extractor(extractor, "cpu")
    return frechet_distance(*(feature_moments([sees.features(x)[0]]) for x in (real, fakes)))


def scored(source: Path, chosen: EvaluateOptions) -> tuple[Evaluation, list[str]]:
    said: list[str] = []
    return evaluate(source, chosen, said.append), said


def test_a_run_is_scored_against_what_it_was_trained_on(
    tmp_path: Path, extractor: str, data: str
) -> None:
    run = tmp_path / "run"
    generator(run / "generator", data)
    ticks: list[int] = []
    found = evaluate(
        run, options(extractor), lambda line: None, lambda name, total: ticks.append(total)
    )
    fakes = sample(open_generator(run).generator, latents(range(40), 6), batch_size=32)
    wanted = distance(extractor, fakes)
    assert found.scores.frechet == pytest.approx(wanted, rel=1e-6)
    told = found.provenance
    assert (told.reals, told.fakes, told.compared) == (120, 40, 40)
    assert told.real == f"…/{'/'.join(Path(data).parts[-2:])}, train"
    assert (told.features, told.held) == (8, 40)
    assert told.stage == "final, step 9 of 9"
    assert told.average == "EMA 0.999 of the parameters"
    assert told.bn == "standing statistics"
    assert told.resizer == "none, 28×28"
    assert found.floor is not None
    assert found.floor.frechet is not None
    assert 0 < found.floor.frechet < wanted
    assert ticks == [7] * 7  # batches of 32 of 40, 80 and 40
    assert found.options.data == data


@pytest.mark.parametrize("bn", ["standing", "running", "batch"])
def test_statistics_are_those_asked_for_and_said(
    tmp_path: Path, extractor: str, data: str, bn: str
) -> None:
    folder = generator(tmp_path / "g", data)
    found, _ = scored(folder, options(extractor, bn=bn, metrics=("frechet",), floor=False))
    assert found.provenance.bn.startswith(f"{bn} statistics")
    assert found.floor is None
    opened = open_generator(folder)
    if bn == "running":
        apply_(opened.generator, Population.load(folder / RUNNING), strict=False)
    fakes = sample(opened.generator, latents(range(40), 6), bn=bn, batch_size=32)
    # channels_last sums in another order, by which a byte or two are rounded the other way
    assert found.scores.frechet == pytest.approx(distance(extractor, fakes), rel=1e-4)
    others = [each for each in ("standing", "running", "batch") if each != bn]
    for other in others:
        again, _ = scored(folder, options(extractor, bn=other, metrics=("frechet",), floor=False))
        assert again.scores.frechet != pytest.approx(found.scores.frechet, rel=1e-3)


def test_a_split_and_a_number_of_real_pictures_are_taken_and_said(
    tmp_path: Path, extractor: str, data: str
) -> None:
    folder = generator(tmp_path / "g")
    chosen = options(extractor, data=data, split="test", reals=20, best=True, neighbours=3)
    found, _ = scored(folder, chosen)
    assert found.provenance.real.endswith("/digits.npz, test")
    assert (found.provenance.reals, found.provenance.held) == (20, 10)
    assert found.provenance.stage == "best, chosen by its score, step 9 of 9"
    assert found.notes == ()


def test_pictures_of_a_folder_are_scored_at_their_own_size(
    tmp_path: Path, extractor: str, data: str
) -> None:
    (tmp_path / "made").mkdir()
    images, _ = digits(30)
    for index, image in enumerate(images):
        Image.fromarray(image).resize((14, 14)).save(tmp_path / "made" / f"{index}.png")
    found, _ = scored(tmp_path / "made", options(extractor, data=data, best=True))
    assert found.provenance.stage == "best, chosen by its score"
    assert found.options.size == 14
    assert found.provenance.fakes == 30
    assert found.provenance.bn == ""
    assert found.provenance.resizer.endswith("14×14 to 28×28")
    assert found.scores.precision is not None
    assert found.scores.precision > 0.5  # they are some of the real ones, but for the resize


def test_real_pictures_score_nothing_against_themselves(
    tmp_path: Path, extractor: str, data: str
) -> None:
    found, _ = scored(Path(data), options(extractor, data=data, fakes=1000, size=28))
    assert found.scores.frechet == pytest.approx(0, abs=1e-6)
    assert found.scores.precision == found.scores.recall == found.scores.coverage == 1


def test_classes_are_drawn_as_the_real_ones_are_where_they_are_the_same(
    tmp_path: Path, extractor: str, data: str
) -> None:
    names = tuple(map(str, range(10)))
    same = generator(tmp_path / "same", data, classes=10, names=names)
    found, _ = scored(same, options(extractor))
    assert found.notes == ()
    other = generator(tmp_path / "other", data, classes=3, names=("a", "b", "c"))
    found, _ = scored(other, options(extractor))
    assert "other classes or none" in found.notes[0]


def test_fewer_pictures_than_features_are_told(tmp_path: Path, extractor: str, data: str) -> None:
    folder = generator(tmp_path / "g", data)
    found, _ = scored(folder, options(extractor, fakes=8, metrics=("frechet",)))
    assert "8 pictures for 8 features" in found.notes[0]


def test_refusals_come_in_one_line(tmp_path: Path, extractor: str, data: str) -> None:
    folder = generator(tmp_path / "g")
    with pytest.raises(InputError, match="does not tell what it was trained on"):
        scored(folder, options(extractor))
    with pytest.raises(InputError, match=r"--size 32: .* draws 28 pixels"):
        scored(folder, options(extractor, data=data, size=32))
    with pytest.raises(InputError, match="give the real pictures"):
        scored(Path(data), options(extractor))
    with pytest.raises(InputError, match=r"--bn, --standing: .* is pictures"):
        scored(Path(data), options(extractor, data=data, bn="batch"))
    with pytest.raises(InputError, match="unknown model 'sngan-fmnits'"):
        scored(Path("sngan-fmnits"), options(extractor, data=data))
    with pytest.raises(InputError, match="more than k"):
        scored(folder, options(extractor, data=data, fakes=4))
    with pytest.raises(InputError, match="goes with --bn standing"):
        options(extractor, bn="batch", standing=64)
    with pytest.raises(InputError, match="did you mean 'frechet'"):
        options(extractor, metrics=("frechett",))
