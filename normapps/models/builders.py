"""Builders of networks that other packages, or the user's own modules, define.

Each makes an architecture with fresh weights from JSON values, so that `model.json` can name it.
"""

from __future__ import annotations

import glob
import importlib
import inspect
import operator
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from torch import nn

from ..errors import InputError, unknown
from . import folder


def timm_model(
    name: str,
    num_classes: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """Make a network of timm.

    Args:
        name: as `timm.create_model` knows it, with or without a tag.
        num_classes: outputs of the classifier, 0 for none; None as timm has it.
        kwargs: further arguments of timm, such as `in_chans`.
        pretrained: fetch timm's weights, or take them from its cache.

    Raises:
        InputError: timm has no such network.
    """
    import timm

    if not has_timm(name):
        raise unknown("timm model", name, timm.list_models())
    create: Any = timm.create_model
    # checkpoint_path is named, so that no model.json can give a file of its own
    model = create(name, pretrained, checkpoint_path="", **_classes(num_classes), **(kwargs or {}))
    return cast(nn.Module, model)


def torchvision_model(
    name: str,
    num_classes: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    pretrained: bool = False,
) -> nn.Module:
    """Make a network of torchvision.

    Args:
        name: as `torchvision.models.get_model` knows it.
        num_classes: outputs of the classifier; None as torchvision has it.
        kwargs: further arguments of its builder.
        pretrained: fetch the default weights, or take them from torch's cache.

    Raises:
        InputError: torchvision has no such network.
    """
    from torchvision import models

    if not has_torchvision(name):
        raise unknown("torchvision model", name, models.list_models())
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    # segmentation and detection fetch a backbone unless told otherwise
    backbone = {"weights_backbone": None} if "weights_backbone" in parameters else {}
    weights = "DEFAULT" if pretrained else None
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce a change of their initialization
        warnings.simplefilter("ignore", FutureWarning)
        model: nn.Module = models.get_model(
            name, weights=weights, **backbone, **_classes(num_classes), **(kwargs or {})
        )
    return model


def factory_model(factory: str, num_classes: int | None = None) -> nn.Module:
    """Make a network by a function of the user's.

    Imports its module, which runs that module's code: a model folder that names a factory is as
    trustworthy as the module of that name on this machine.

    Args:
        factory: `package.module:function`, found as `python -m` would from the current folder;
            the function needs no argument and returns a `torch.nn.Module`.
        num_classes: given to the function if it takes an argument of that name.

    Raises:
        InputError: there is no such module or function, it needs arguments, it fails, or it
            returns something else.
    """
    with _current_folder_importable():
        make = _callable(factory)
        _check_signature(factory, make, num_classes)
        try:
            model = make(**_classes(num_classes))
        except Exception as error:  # somebody else's code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{factory}: fails ({reason})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory}: returns {type(model).__name__}, not a torch.nn.Module")
    return model


def converted_model(base: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Make a network and replace its norm layers again, in the steps that were taken.

    Args:
        base: `builder` and `arguments` of the network before.
        steps: of each, `to` is the new layers' name and `options` their options; `layers` lists
            the names of the layers that were replaced, without it all that match are; `match`
            and `init` are as in `convert_norm_`.

    Raises:
        InputError: the base cannot be made, or a step does not fit it.
    """
    from ..norm.convert.converter import convert_norm_

    model = folder.build(base["builder"], base["arguments"])
    for step in steps:
        layers = step.get("layers")
        chosen = {key: step[key] for key in ("match", "init") if key in step}
        if layers is not None:
            chosen = {"match": "all", "include": [glob.escape(name) for name in layers], **chosen}
        if layers or layers is None:
            convert_norm_(model, step["to"], **chosen, **step.get("options", {}))
    return model


def slimmed_model(
    base: Mapping[str, Any],
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    indices: Mapping[str, Sequence[Sequence[int] | None]] | None = None,
) -> nn.Module:
    """Make a network and give it the shapes of a slimmed one.

    Args:
        base: `builder` and `arguments` of the network before; itself slimmed, if it was twice.
        attributes, shapes, indices: as in `normapps.models.slimmed.Edits`.

    Raises:
        InputError: the base cannot be made, or the edits do not fit it.
    """
    from .slimmed import Edits, apply_edits_

    model = folder.build(base["builder"], base["arguments"])
    apply_edits_(model, Edits(attributes or {}, shapes or {}, indices or {}))
    return model


def has_timm(name: str) -> bool:
    """Whether timm has a network of this name, whatever its tag."""
    import timm

    # "hf-hub:…" and "local-dir:…" would read files that model.json has no hash of
    return not {"/", ":"} & set(name) and bool(timm.is_model(name))


def has_torchvision(name: str) -> bool:
    """Whether torchvision has a network of this name."""
    from torchvision import models

    return name in models.list_models()


def library_names() -> list[str]:
    """Every name that `open_model` knows from timm and torchvision, those of timm first."""
    import timm
    from torchvision import models

    ours = list(timm.list_models())
    return ours + [name for name in models.list_models() if name not in set(ours)]


def _classes(num_classes: int | None) -> dict[str, int]:
    return {} if num_classes is None else {"num_classes": num_classes}


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        yield
    finally:
        if added:
            with suppress(ValueError):  # the module itself may have taken it out
                sys.path.remove(here)


def _callable(factory: str) -> Callable[..., Any]:
    module_name, _, path = factory.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{factory}: no module '{error.name}', neither installed nor in the current folder"
            ) from error
        raise InputError(f"{factory}: module '{module_name}' needs '{error.name}'") from error
    except Exception as error:  # somebody else's module may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{factory}: cannot be imported ({reason})") from error
    try:
        found = operator.attrgetter(path)(module)
    except AttributeError as error:
        public = [name for name, value in vars(module).items() if callable(value)]
        raise InputError(f"{factory}: {unknown('factory', path, public)}") from error
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"{factory}: is {type(found).__name__}; name a function that returns a torch.nn.Module"
        )
    return cast("Callable[..., Any]", found)


def _check_signature(factory: str, make: Callable[..., Any], num_classes: int | None) -> None:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # a class written in C tells nothing
        return
    by_name = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    needed = [p.name for p in by_name if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if num_classes is not None:
        if not any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in by_name):
            raise InputError(f"{factory}: takes no num_classes; leave it out")
        needed = [name for name in needed if name != "num_classes"]
    if needed:
        raise InputError(
            f"{factory}: needs {', '.join(needed)}; name a function without required arguments"
        )
