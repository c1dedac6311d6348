"""What a training works on: the network, its classes, pictures to learn and judge from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..data.pool import Pool
from ..errors import InputError
from ..models.load import OpenedModel
from ..training.classes import few, match_classes, split
from ..training.opening import Progress, open_for, read_pool
from .train_options import SupervisedOptions

WHOLE, HELD = "the training pictures", "held-out pictures"
"""What accuracies are measured on."""


@dataclass(frozen=True)
class Material:
    """Labelled pictures, numbered by one list of classes.

    Attributes:
        train: what is learnt from.
        test: what accuracy is measured on.
        classes: names of the outputs.
        measured_on: `WHOLE` or `HELD`.
    """

    train: Pool
    test: Pool
    classes: tuple[str, ...]
    measured_on: str = HELD

    @classmethod
    def of(
        cls,
        pool: Pool,
        test: Pool | None = None,
        hold_out: int = 5,
        names: tuple[str, str] = ("the pictures", "--test"),
        say: Callable[[str], object] = lambda _: None,
    ) -> Material:
        """Number the classes, and hold a part out where there is no test set.

        Args:
            pool: labelled pictures.
            test: labelled pictures to measure on.
            hold_out: without `test`, every n-th picture is measured on; 0: all, learnt from too.
            names: what lines and errors call the two.
            say: told what is left out, a line each.

        Raises:
            InputError: no labels, one class, or nothing left to learn from or to measure on.
        """
        others = [] if test is None else [(names[1], test)]
        matched = match_classes([(names[0], pool)], others)
        for line in matched.said:
            say(line)
        (source,) = matched.sources
        if matched.others:
            return cls(source, _labelled(matched.others[0], names[1]), matched.classes)
        train, held = split(source, hold_out)
        return cls(train, held, matched.classes, HELD if hold_out else WHOLE)


def read_material(
    data: str,
    opened: OpenedModel,
    options: SupervisedOptions,
    say: Callable[[str], object],
    progress: Progress | None,
) -> Material:
    """Read the pictures of a command into memory.

    Args:
        data: class folders or a list, as `Pictures` takes them.
        opened: whose preprocessing they get.
        options: limits, and what is measured on.
        say: told what was left out, a line each.
        progress: told of every picture that is read.

    Raises:
        InputError: pictures that cannot be used; the line names the place.
    """
    pool = read_pool(data, opened, options, say, progress)
    test = None if options.test is None else read_pool(options.test, opened, options, say, progress)
    names = data, options.test or "--test"
    return Material.of(pool, test, options.hold_out, names, say)


def open_with_material(
    spec: str,
    data: str,
    options: SupervisedOptions,
    say: Callable[[str], object],
    progress: Progress | None,
) -> tuple[OpenedModel, Material]:
    """Open a trained network and read pictures of the classes that it knows.

    Args:
        spec: MODEL.
        data: class folders or a list, as `Pictures` takes them.
        options: weights, limits, and what is measured on.
        say: told what was opened, read and left out, a line each.
        progress: told of every picture that is read.

    Raises:
        InputError: a model or pictures that cannot be used, or pictures of other classes.
    """
    opened = open_for(spec, options, say)
    material = read_material(data, opened, options, say, progress)
    check_classes(opened, material)
    return opened, material


def _labelled(pool: Pool, name: str) -> Pool:
    if pool.labels is None:
        raise InputError(f"{name}: has no labels; put the pictures into a folder a class")
    return pool


def check_classes(opened: OpenedModel, material: Material) -> None:
    """Refuse pictures of other classes than a network's folder says that it was trained on.

    Raises:
        InputError: they are others, or in another order.
    """
    known = opened.classes or material.classes
    if known != material.classes:
        raise InputError(
            f"{opened.name}: was trained on the classes {few(known)}, the pictures are of "
            f"{few(material.classes)}; give pictures of those, or train anew by slim train"
        )
