"""Whether the labels of pictures are a model's classes, and which of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .classes import in_order
from .pictures import Pictures
from .sources import LISTS


def model_classes(
    pictures: Pictures, outputs: int, known: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """Name the outputs of a model as the labels of pictures do, or say why they cannot.

    A model that knows the names of its classes is judged by these. Otherwise the numbers that a
    list gives are classes as they stand, where the model has them all; and class folders, or other
    words of a list, are numbered `in_order`, as training does, and fit a model of as many outputs.

    Args:
        pictures: labelled or not.
        outputs: of the model.
        known: names of its classes by number, such as `OpenedModel.classes`.

    Returns:
        The names by number and an empty word, or no names and the reason.
    """
    if pictures.labels is None:
        return (), f"{pictures.place} has no labels, which class folders or a list would give"
    present = in_order(pictures.classes[label] for label in pictures.labels)
    as_they_stand = _are_numbers(pictures)
    if len(known) == outputs and not _strange(present, known):
        return tuple(known), ""
    if as_they_stand and len(pictures.classes) <= outputs:
        return tuple(map(str, range(outputs))), ""
    if len(known) == outputs:
        name = _strange(present, known)[0]
        return (), f"data has the class {name!r}, which is none of those that the model learned"
    names = present if as_they_stand else pictures.classes
    if len(names) == outputs:
        return in_order(names), ""
    return (), f"data has {len(names)} classes, the model {outputs} outputs"


def class_numbers(pictures: Pictures, names: Sequence[str], of: str = "the model") -> Tensor:
    """Return the number among `names` of each class of the pictures: (C,) int64.

    It is -1 for a class of which there is no picture. `of` is whose names they are, for the error.

    Raises:
        InputError: a picture of a class that is not among them.
    """
    present = [pictures.classes[label] for label in dict.fromkeys(pictures.labels or ())]
    strange = _strange(present, names)
    if strange:
        raise InputError(
            f"{pictures.place}: {of} has no class {strange[0]!r}; give both the same classes"
        )
    numbers = {_word(name): number for number, name in enumerate(names)}
    return torch.tensor([numbers.get(_word(name), -1) for name in pictures.classes])


def fitting_labels(
    pictures: Pictures, labels: Tensor | None, outputs: int, known: Sequence[str] = ()
) -> tuple[Tensor | None, str]:
    """Return labels (N,) as the model's classes, or None and why they are none.

    Args:
        pictures: that gave the labels.
        labels: (N,) int64, classes of the pictures.
        outputs, known: of the model, see `model_classes`.
    """
    names, why = model_classes(pictures, outputs, known)
    if labels is None or why:
        return None, why
    return class_numbers(pictures, names)[labels], ""


def _are_numbers(pictures: Pictures) -> bool:
    is_list = Path(pictures.place).suffix.lower() in LISTS
    return is_list and pictures.classes == tuple(map(str, range(len(pictures.classes))))


def _strange(present: Sequence[str], names: Sequence[str]) -> list[str]:
    words = set(map(_word, names))
    return [name for name in present if _word(name) not in words]


def _word(name: str) -> str:
    """A folder `007` is what a list calls 7."""
    return str(int(name)) if name.isdecimal() else name
