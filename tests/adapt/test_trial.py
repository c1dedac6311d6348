"""Looks at a model, and what is adapted, against the model run by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from normapps.adapt.run_options import AdaptOptions
from normapps.adapt.trial import look, look_size, try_method
from normapps.data.feed import Feed
from normapps.data.pictures import Pictures
from normapps.models.preprocessing import Preprocessing
from normapps.norm.population.algebra import distance
from normapps.norm.population.measuring import measure
from normapps.norm.population.statistics import Population

PREPROCESSING = Preprocessing((16, 16), (16, 16))


@pytest.fixture
def feed(chelsea: np.ndarray, tmp_path: Path) -> Feed:
    rng = np.random.default_rng(0)
    for i in range(23):  # cuts out of a photograph
        top, left = rng.integers(0, 280), rng.integers(0, 430)
        file = tmp_path / str(i % 3) / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(chelsea[top : top + 20, left : left + 20]).save(file)
    return Feed(Pictures(tmp_path, PREPROCESSING), 8, torch.device("cpu"))


def _model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 3)).eval()


def test_a_look_has_the_models_answers_in_order(feed: Feed) -> None:
    model, told = _model(), []
    found = look(model, feed, told.append, "before")
    halves = [list(feed.part(number, 2)) for number in (1, 2)]
    images, labels = zip(*(batch for half in halves for batch in half), strict=True)
    with torch.no_grad():
        wanted = model(torch.cat(images))
    torch.testing.assert_close(found.logits, wanted)
    assert found.labels is not None
    assert torch.equal(found.labels, torch.cat(labels))
    assert told == ["before"] * 3
    population = measure(model, list(feed.part()), mode="fixed")
    assert found.population is not None
    assert found.population.samples == 23
    far = {
        name: float(each.mean())
        for name, each in distance(Population.of(model), population).items()
    }
    assert found.shift == pytest.approx(far, rel=1e-6)
    assert list(found.chance) == ["1"]
    assert 0 < found.chance["1"] < found.shift["1"]


def test_two_batches_at_least_are_looked_at(feed: Feed) -> None:
    assert look_size(feed) == 8
    large = Feed(feed.pictures, 100, torch.device("cpu"))
    assert look_size(large) == 12
    assert look(_model(), large, lambda stage: None, "").chance


def test_the_model_stays_as_it_is(feed: Feed) -> None:
    model = _model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trial = try_method(model, feed, AdaptOptions(batch_size=8), lambda stage: None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._forward_hooks
    changed = [
        key
        for key, value in trial.adapted.state_dict().items()
        if not torch.equal(value, before[key])
    ]
    assert changed == ["1.running_mean", "1.running_var"]
    assert trial.after.shift["1"] < 0.01 * trial.before.shift["1"]
    assert trial.seconds > 0
