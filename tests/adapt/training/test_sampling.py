"""The batches of a step: every picture once a round, the same whenever the step comes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from normapps.adapt.training.options import RecipeOptions
from normapps.adapt.training.sampling import Feed
from normapps.data.pool import Pool
from normapps.engine.distributed import World
from normapps.errors import InputError


def normalize(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def test_a_step_draws_the_same_whenever_it_comes(
    options: RecipeOptions, source: Pool, target: Pool
) -> None:
    chosen = replace(options, shift=0.2)
    one, other = (Feed([source], [target], chosen, normalize, views=2) for _ in range(2))
    for step in range(4):
        one.batch(step)
    first, again = one.batch(4), other.batch(4)
    assert torch.equal(first.sources[0], again.sources[0])
    assert torch.equal(first.labels[0], again.labels[0])
    assert torch.equal(first.again[0], again.again[0])
    assert not torch.equal(first.targets[0], first.again[0])
    rank = Feed([source], [target], chosen, normalize, here=World(1, 2)).batch(4)
    assert not torch.equal(first.sources[0], rank.sources[0])


def test_labels_belong_to_their_pictures(options: RecipeOptions, source: Pool) -> None:
    plain = replace(options, crop=1.0, shift=0.0, flip=0.0, jitter=0.0)
    batch = Feed([source], [], plain, normalize).batch(7)
    assert source.labels is not None
    pairs = zip(source.images, source.labels, strict=True)
    bytes_of = {each.numpy().tobytes(): int(label) for each, label in pairs}
    pictures = (batch.sources[0] * 255).round().byte()
    assert [bytes_of[each.numpy().tobytes()] for each in pictures] == batch.labels[0].tolist()
    assert batch.targets == batch.again == ()


def test_pools_that_do_not_fit_are_refused(options: RecipeOptions, source: Pool) -> None:
    with pytest.raises(InputError, match="no source"):
        Feed([], [source], options, normalize)
    with pytest.raises(InputError, match="source 0 has no labels"):
        Feed([Pool(source.images)], [], options, normalize)
    with pytest.raises(InputError, match="bring all to one shape"):
        Feed([source], [Pool(source.images[:, :, 1:])], options, normalize)


@pytest.mark.parametrize("kind", ["histogram", "fda"])
def test_sources_can_have_the_targets_look(
    kind: str, options: RecipeOptions, source: Pool, target: Pool
) -> None:
    plain = replace(options, crop=1.0, shift=0.0, flip=0.0, jitter=0.0)
    chosen = replace(plain, appearance=kind, fda_beta=0.13)
    before = Feed([source], [target], plain, normalize).batch(3)
    after = Feed([source], [target], chosen, normalize, looks=[target]).batch(3)
    again = Feed([source], [], chosen, normalize, looks=[target]).batch(3)
    paper = before.targets[0].amin(), before.sources[0].amin()
    assert abs(after.sources[0].median() - paper[0]) < 0.1 < abs(paper[1] - paper[0])
    assert torch.equal(before.targets[0], after.targets[0])
    assert torch.equal(after.sources[0], again.sources[0])
    assert torch.equal(before.labels[0], after.labels[0])
    with pytest.raises(InputError, match=f"--appearance {kind}: needs target pictures"):
        Feed([source], [], chosen, normalize)
