"""What a timm network says of its own widths, kept true in a slimmed one.

`num_features`, `head_hidden_size` and `feature_info` tell `reset_classifier` and feature extraction
how many channels there are. They are what code says of itself, so they are observed while the
network runs: once with all channels, once without.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .surgery import Sizes

_FEATURES, _HEAD, _STAGE = "features", "head", "stage "
_WIDTHS = ("num_features", "head_hidden_size", "in_features", "hidden_size", "num_chs")


class Declared:
    """Observes, while it is entered, the channels where a network says how many there are.

    Attributes:
        sizes: of the output of `forward_features`, of the classifier's input and of the output of
            every module that `feature_info` names; what did not run is missing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sizes: dict[str, int] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Declared:
        modules = dict(self.model.named_modules())
        for stage in _stages(self.model):
            if (module := modules.get(str(stage.get("module")))) is not None:
                self._handles.append(module.register_forward_hook(self._after(stage["module"])))
        for module in _classifiers(self.model):
            self._handles.append(module.register_forward_pre_hook(self._before()))
        features = getattr(self.model, "forward_features", None)
        if callable(features):
            vars(self.model)["forward_features"] = self._watched(features)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        vars(self.model).pop("forward_features", None)

    def _watched(self, features: Callable[..., Any]) -> Callable[..., Any]:
        def forward_features(*args: Any, **kwargs: Any) -> Any:
            out = features(*args, **kwargs)
            self._note(_FEATURES, out)
            return out

        return forward_features

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, out: self._note(_STAGE + name, out)

    def _before(self) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: self._note(_HEAD, args[0] if args else None)

    def _note(self, what: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.dim() > 1:
            self.sizes[what] = value.shape[1]


def declared_sizes(model: nn.Module, before: Mapping[str, int], after: Mapping[str, int]) -> Sizes:
    """Say which attributes a slimmed network must have to be right about itself.

    Args:
        model: the slimmed network, whose attributes are still the original's.
        before, after: `Declared.sizes` of the original and of this network.

    Returns:
        Module name → attribute → value, only of those that change: an attribute changes if it
        holds the number that was observed before.
    """
    found: Sizes = {}
    top = _changed(before, after, _FEATURES, vars(model).get("num_features"))
    if top is not None:
        found[""] = {"num_features": top}
    for name, owner in _owners(model):
        for key in _WIDTHS:
            new = _changed(before, after, _HEAD, vars(owner).get(key))
            if new is not None:
                found.setdefault(name, {}).setdefault(key, new)
    stages = _told(model, before, after)
    if stages is not None:
        found.setdefault("", {})["feature_info"] = stages
    return found


def _changed(before: Mapping[str, int], after: Mapping[str, int], what: str, old: Any) -> Any:
    if type(old) is not int or before.get(what) != old or after.get(what, old) == old:
        return None
    return after[what]


def _told(model: nn.Module, before: Mapping[str, int], after: Mapping[str, int]) -> Any:
    """`feature_info` with the new numbers of channels, or None if none of them is new."""
    stages = copy.deepcopy(_stages(model))
    for stage in stages:
        what = f"{_STAGE}{stage.get('module')}"
        new = _changed(before, after, what, stage.get("num_chs"))
        if new is not None:
            stage["num_chs"] = new
    return stages if stages != _stages(model) else None


def _stages(model: nn.Module) -> list[dict[str, Any]]:
    info = vars(model).get("feature_info")
    fits = isinstance(info, list) and all(isinstance(each, dict) for each in info)
    return info if fits and info is not None else []


def _classifiers(model: nn.Module) -> Iterator[nn.Module]:
    get = getattr(model, "get_classifier", None)
    with contextlib.suppress(Exception):  # not timm's
        found = get() if callable(get) else None
        if isinstance(found, nn.Linear | nn.Conv2d):
            yield found


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that contain the classifier, the model itself among them."""
    for wanted in _classifiers(model):
        for name, module in model.named_modules():
            if module is not wanted and any(part is wanted for part in module.modules()):
                yield name, module
