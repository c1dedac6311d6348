"""Classes of several domains as one list, matched by name, and a classifier that fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..data.classes import in_order
from ..data.pool import Pool
from ..engine.device import evaluating
from ..errors import InputError
from ..models.folder import build
from ..models.load import OpenedModel
from ..models.outputs import logits_of


@dataclass(frozen=True)
class Matched:
    """Pools whose labels are indices of one list of classes.

    Attributes:
        classes: all classes of the sources, `in_order`.
        sources, others: the pools, in the order given.
        said: a line for each pool of which pictures were left out.
    """

    classes: tuple[str, ...]
    sources: tuple[Pool, ...]
    others: tuple[Pool, ...]
    said: tuple[str, ...]


def match_classes(
    sources: Mapping[str, Pool] | Sequence[tuple[str, Pool]], others: Sequence[tuple[str, Pool]]
) -> Matched:
    """Number the classes of all pools by the names that the sources have.

    Pictures of a class that no source has cannot be learned; they are left out, and a line says
    so. Pools without labels stay as they are.

    Args:
        sources: name and pool of each source.
        others: name and pool of each target or test set.

    Raises:
        InputError: a source without labels, fewer than two classes, or a pool of which nothing is
            left.
    """
    given = list(sources.items()) if isinstance(sources, Mapping) else list(sources)
    for name, pool in given:
        if pool.labels is None:
            raise InputError(f"{name}: has no labels; put the pictures into a folder a class")
    classes = in_order(each for _, pool in given for each in _present(pool))
    if len(classes) < 2:
        raise InputError(f"{given[0][0]}: has one class; a classifier needs two or more")
    said: list[str] = []
    pools = [_renumbered(name, pool, classes, said) for name, pool in [*given, *others]]
    return Matched(classes, tuple(pools[: len(given)]), tuple(pools[len(given) :]), tuple(said))


def split(pool: Pool, every: int) -> tuple[Pool, Pool]:
    """Hold out every n-th picture in the order of the classes; return the rest and those.

    The only picture of a class stays with the rest. With n = 0, and without labels, both are all
    pictures.

    Raises:
        InputError: nothing would be left to train on.
    """
    if not every or pool.labels is None:
        return pool, pool
    order = pool.labels.argsort(stable=True)
    held = torch.zeros(len(pool), dtype=torch.bool)
    held[order[every - 1 :: every]] = True
    if every > 1:
        held &= pool.labels.bincount()[pool.labels] > 1
    if held.all() or not held.any():
        raise InputError(
            f"--hold-out {every}: leaves no picture of {len(pool)} to train or to measure on;"
            " give more pictures a class, or --hold-out 0"
        )
    return _part(pool, ~held), _part(pool, held)


def with_classes(opened: OpenedModel, count: int, seed: int) -> tuple[OpenedModel, tuple[str, ...]]:
    """Return a network with an output a class, and the names of the parameters that start anew.

    Where the classifier has as many outputs, the network is returned as it is. Otherwise its
    architecture is made again, with fresh weights for the classifier and its own elsewhere.

    Raises:
        InputError: the network takes no number of classes.
    """
    if outputs_of(opened) == count:
        return opened, ()
    source = _with_count(opened.source, count)
    try:
        model = build(source["builder"], source["arguments"], seed=seed)
    except InputError as error:
        raise InputError(
            f"{opened.name}: its classifier cannot be given {count} classes ({error})"
        ) from error
    own, state = opened.model.state_dict(), model.state_dict()
    fresh = tuple(key for key in state if key not in own or own[key].shape != state[key].shape)
    model.load_state_dict({key: own[key] if key not in fresh else state[key] for key in state})
    made = replace(opened, model=model.eval(), source=source)
    if outputs_of(made) != count:
        raise InputError(f"{opened.name}: has {outputs_of(made)} outputs for {count} classes")
    return made, fresh


def outputs_of(opened: OpenedModel) -> int:
    """Return how many logits a network has, from a forward pass on zeros.

    Raises:
        InputError: it returns no logits.
    """
    wanted = opened.preprocessing
    return count_outputs(opened.model, (wanted.channels, *wanted.size))


def count_outputs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many logits a network has for pictures (C, H, W).

    Raises:
        InputError: it returns no logits.
    """
    like = next(model.parameters(), torch.zeros(()))
    with evaluating(model):
        return logits_of(model(torch.zeros(2, *shape, device=like.device))).shape[1]


def _with_count(source: Mapping[str, Any], count: int) -> dict[str, Any]:
    arguments = dict(source["arguments"])
    if source["builder"] == "converted":
        return {**source, "arguments": arguments | {"base": _with_count(arguments["base"], count)}}
    return {**source, "arguments": arguments | {"num_classes": count}}


def _names(pool: Pool) -> tuple[str, ...]:
    if pool.classes or pool.labels is None:
        return pool.classes
    return tuple(map(str, range(int(pool.labels.max()) + 1)))


def _present(pool: Pool) -> list[str]:
    """The classes that a pool has pictures of."""
    names, labels = _names(pool), pool.labels
    return [] if labels is None else [names[int(label)] for label in labels.unique()]


def _renumbered(name: str, pool: Pool, classes: tuple[str, ...], said: list[str]) -> Pool:
    names = _names(pool)
    if pool.labels is None or names == classes:
        return pool
    numbers = {each: number for number, each in enumerate(classes)}
    labels = torch.tensor([numbers.get(each, -1) for each in names])[pool.labels]
    known = labels >= 0
    if not known.any():
        raise InputError(
            f"{name}: its classes ({few(_present(pool))}) are none of the sources' "
            f"({few(classes)}); name them alike"
        )
    if not known.all():
        strange = [each for each in _present(pool) if each not in numbers]
        said.append(
            f"{name}: left out {int((~known).sum())} of {len(pool)} pictures, of classes that no "
            f"source has ({few(strange)})"
        )
    kept = pool if known.all() else _part(pool, known)
    return Pool(kept.images, labels[known], classes, pool.failed)


def _part(pool: Pool, chosen: torch.Tensor) -> Pool:
    labels = None if pool.labels is None else pool.labels[chosen]
    return Pool(pool.images[chosen], labels, pool.classes, pool.failed)


def few(names: Sequence[str]) -> str:
    """Return the first four names, and how many there are."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, … {len(names)} in all"
