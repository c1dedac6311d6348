"""Scoring a generator as a trainer does: against its parts done by hand, and leaving no trace."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from normapps.data.pool import Pool
from normapps.errors import InputError
from normapps.gan.evaluation.frechet import feature_moments, frechet_distance
from normapps.gan.evaluation.kernel import kernel_distance
from normapps.gan.evaluation.options import MeasureOptions
from normapps.gan.evaluation.scorer import Scorer, classes_like, drawn, of_pool, shuffled
from normapps.gan.evaluation.scores import compare, see, too_few
from normapps.gan.sampling import latents, sample

OPTIONS = MeasureOptions(
    fakes=70, metrics=("frechet", "kernel", "manifold", "classifier"), subset_size=20, subsets=3,
    batch_size=16, splits=2, most=60,
)  # fmt: skip


class Means:
    """Means of four rows of pixels; the logits are as many."""

    name, sha256, size, resizer, is_fid = "means", "0" * 64, (8, 8), "bicubic", False

    def __init__(self) -> None:
        self.batches = 0

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.batches += 1
        features = x.float().reshape(len(x), 4, -1).mean(2)
        return features, features / 50

    def describe_resizer(self, given: tuple[int, int]) -> str:
        return f"none, {given[0]}×{given[1]}"


class Generator(nn.Module):
    """Grey pictures of 8 pixels, with a batch norm, conditional if asked."""

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.latent, self.num_classes, self.size, self.channels = 5, num_classes, 8, 1
        self.linear, self.norm = nn.Linear(5, 64), nn.BatchNorm2d(1)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.norm(self.linear(z).reshape(-1, 1, 8, 8))
        if y is not None:
            x = x * 0 + (y / 4).reshape(-1, 1, 1, 1)
        return torch.tanh(x)


@pytest.fixture
def pool() -> Pool:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (90, 1, 8, 8), generator=draws, dtype=torch.uint8)
    return Pool(images)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator()


def test_scores_are_those_of_the_pictures_drawn_by_seed(pool: Pool, generator: Generator) -> None:
    scorer = Scorer(Means(), pool, OPTIONS)
    found = scorer(generator)
    fakes = sample(generator, latents(range(70), 5), batch_size=16)
    fake, real = Means().features(fakes)[0], Means().features(pool.images)[0]
    wanted = frechet_distance(feature_moments([real]), feature_moments([fake]))
    assert found["fd"] == pytest.approx(wanted, rel=1e-9)
    order = shuffled(90, 0, 0)
    kernel = kernel_distance(real[order[:60]], fake[:60], subsets=3, subset_size=20)
    assert (found["kd"], found["kd_std"]) == pytest.approx(kernel)
    assert set(found) == {
        "fd", "kd", "kd_std", "precision", "recall", "density", "coverage", "cs", "cs_std"
    }  # fmt: skip


def test_real_pictures_are_seen_once(pool: Pool, generator: Generator) -> None:
    extractor = Means()
    scorer = Scorer(extractor, pool, OPTIONS)
    before = extractor.batches
    assert scorer(generator) == scorer(generator)
    assert extractor.batches - before == 2 * 5  # 70 drawn pictures in batches of 16, twice


def test_scoring_leaves_generator_and_random_state_as_they_were(
    pool: Pool, generator: Generator
) -> None:
    """A run that scores must take the same steps as one that does not."""
    generator.train()
    scorer = Scorer(Means(), pool, OPTIONS)
    state, random = copy.deepcopy(generator.state_dict()), torch.get_rng_state()
    for how in ({"bn": "batch"}, {"standing": 32}, {}):
        scorer(generator, **how)  # type: ignore[arg-type]
    assert torch.equal(random, torch.get_rng_state())
    assert generator.training
    assert generator.norm.training
    for name, value in generator.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_statistics_change_what_is_drawn(pool: Pool, generator: Generator) -> None:
    scorer = Scorer(Means(), pool, OPTIONS)
    generator.norm.running_mean += 3
    as_is, standing = scorer(generator)["fd"], scorer(generator, standing=512)["fd"]
    batch = scorer(generator, bn="batch")["fd"]
    assert as_is > 3 * standing
    assert batch == pytest.approx(standing, rel=0.2)


@pytest.mark.parametrize(("fakes", "held"), [(20, 20), (70, 45)])
def test_the_floor_is_of_as_many_real_pictures_as_are_drawn(
    pool: Pool, fakes: int, held: int
) -> None:
    scorer = Scorer(Means(), pool, replace(OPTIONS, fakes=fakes))
    assert (scorer.held.count, scorer.others.count, scorer.real.count) == (held, 90 - held, 90)
    order = shuffled(90, 0, 0)
    features = Means().features(pool.images)[0]
    parts = (feature_moments([features[rows]]) for rows in (order[held:], order[:held]))
    assert scorer.floor().frechet == pytest.approx(frechet_distance(*parts), rel=1e-9)
    whole = feature_moments([features])
    torch.testing.assert_close(scorer.real.moments.cov, whole.cov)


def test_classes_are_drawn_as_often_as_they_are_real() -> None:
    labels = torch.tensor([0] * 70 + [2] * 30)
    options = MeasureOptions(fakes=4000)
    found = classes_like(labels, 3, options)
    assert found is not None
    shares = found.bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.0, 0.3]), rtol=0, atol=0.03)
    evenly = classes_like(None, 5, options)
    assert evenly is not None
    assert evenly.bincount().tolist() == [800] * 5
    assert classes_like(labels, 0, options) is None
    with pytest.raises(InputError, match="3 classes, the generator 2"):
        classes_like(labels, 2, options)


def test_a_conditional_generator_draws_the_classes() -> None:
    pictures = torch.cat(list(drawn(Generator(4), OPTIONS, None, "standing")))
    assert pictures.shape == (70, 1, 8, 8)
    values = [int((torch.tanh(torch.tensor(c / 4)) + 1) * 128) for c in range(4)]
    assert pictures[:, 0, 0, 0].tolist() == [values[i % 4] for i in range(70)]


def test_what_is_kept_is_bounded_and_what_is_measured_is_all(pool: Pool) -> None:
    seen = see(Means(), of_pool(pool, range(90), 16), most=20)
    assert len(seen.features) == 20
    assert seen.logits is not None
    assert len(seen.logits) == 20
    assert seen.count == 90
    features = Means().features(pool.images)[0]
    torch.testing.assert_close(seen.moments.mean[0], features.double().mean(0))


def test_names_tell_the_fid_from_other_distances(pool: Pool) -> None:
    seen = see(Means(), of_pool(pool, range(90), 16))
    scores = compare(seen, seen, OPTIONS)
    assert {"fid", "kid", "is"} <= scores.named(is_fid=True).keys()
    assert not {"fid", "kid", "is"} & scores.named().keys()


def test_few_pictures_are_told(pool: Pool) -> None:
    seen, few = (see(Means(), of_pool(pool, range(count), 4)) for count in (90, 4))
    assert too_few(seen, seen, OPTIONS) == []
    lines = too_few(seen, few, OPTIONS)
    assert "4 pictures for 4 features" in lines[0]
    assert "2 pictures a split for 4 classes" in lines[1]


def test_too_few_real_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="3 real pictures"):
        Scorer(Means(), Pool(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)), OPTIONS)


def test_a_caller_can_ask_for_some_of_the_scores(pool: Pool, generator: Generator) -> None:
    scorer = Scorer(Means(), pool, OPTIONS)
    assert scorer(generator, metrics=("frechet",)) == {"fd": scorer(generator)["fd"]}
