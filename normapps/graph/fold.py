"""fold_batchnorm_: batch norms, and whatever is a fixed map at inference, go into their layers.

γ·(Wx + b − μ)/√(σ²+ε) + β is a convolution again (Jacob et al. 2018, sec. 3.2, for one). Where a
norm stands is found by running the network once; that the folded one computes the same is proven
by running both, and what cannot be proven stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..norm.convert.fusing import FUSERS
from ..norm.convert.sites import Site, find_sites
from ..norm.moments import Moments
from ..norm.nesting import detached_copy
from ..norm.undo import Undo
from .comparison import difference_of
from .dispatch import not_run, refuse_wrapped
from .flow import Flow, trace_flow
from .fold_affine import is_population_norm
from .fold_places import Finder, StaysError
from .fold_plan import Plan, apply_, planned
from .probes import other_sizes, sizes_of

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}
"""Largest relative difference of the outputs that is taken for rounding, by precision."""

TRIALS = 64
"""Comparisons that the search for guilty norms makes: about 2 log₂(norms) for each guilty one."""


@dataclass(frozen=True)
class Folded:
    """One norm layer that was folded.

    Attributes:
        norm: its name.
        into: names of the layers it went into; its own name where it became one ("alone").
        where: it stood "after" these layers, or "before" them; or "alone".
    """

    norm: str
    into: tuple[str, ...]
    where: str


class Folding(Undo):
    """What a fold did, and the way back: calling it restores every bit.

    Attributes:
        folded: one entry a norm layer, in the order they were folded.
        left: name of each norm layer that stays, and why.
        difference: of the outputs, max|a − b| / max|a|, by `difference_of`; NaN if not verified.
        statistics: by the name of a layer that a norm was folded into from behind, which read all
            of its outputs and no averages of them: the moments (1, C) of its outputs, float64 on
            the CPU, count 0 as it is not known. Their mean is β and their variance γ²·σ²/(σ²+ε),
            γ² but for channels that hardly vary. A mutable dict, which later transformations keep
            true.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folded: tuple[Folded, ...] = ()
        self.left: tuple[tuple[str, str], ...] = ()
        self.difference = math.nan
        self.statistics: dict[str, Moments] = {}

    def __enter__(self) -> Folding:
        return self


def fold_batchnorm_(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], *, verify: bool = True
) -> Folding:
    """Fold the norm layers with fixed statistics of a network into its convolutions, in place.

    A norm goes into the convolution (grouped, depthwise, transposed, too) or linear layer whose
    output it alone reads, else into those that alone read its own output, if that is exact: not
    through padding with zeros, unless it shifts nothing. Its activation and dropout stay in its
    place (timm's `BatchNormAct2d`, layers of ours), or an `nn.Identity`. Whitening layers go the
    same way, or become a 1×1 convolution. Folded in float64, for inference: a network that is
    trained further has no batch norm there any more.

    Args:
        model: any network with norm layers of torch, timm, torchvision or ours; its mode stays.
        inputs: what `model(*inputs)` takes, on its device and not constant. Norms that do not run
            on them stay.
        verify: prove it against a copy of the network as it was, on `inputs` and, where it runs
            on them, on some of another batch size, height and width. Norms that make it differ by
            more than `TOLERANCES` are found by halving, and stay.

    Raises:
        InputError: the network does not run on these inputs, is compiled, wrapped or scripted, or
            does not give finite outputs, or not the same twice.

    Example:
        >>> folding = fold_batchnorm_(model, torch.randn(1, 3, 224, 224))
        >>> print(folding.left, folding.difference)
    """
    _refuse(model)
    return _fold_(model, inputs, detached_copy(model) if verify else None)


def fold_batchnorm(model: nn.Module, inputs: Tensor | tuple[Any, ...]) -> tuple[nn.Module, Folding]:
    """Return a folded copy of a network, and what was done to it; see `fold_batchnorm_`.

    Raises:
        InputError: as `fold_batchnorm_`.
    """
    refuse_wrapped(model, "fold")
    folded = detached_copy(model)
    return folded, _fold_(folded, inputs, model)


@torch.inference_mode(False)
def _fold_(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], reference: nn.Module | None
) -> Folding:
    folder = _Folder(model, inputs, reference)
    if reference is not None:
        folder.check_repeats()
    while folder.round() or folder.widen():
        pass
    folder.folding.left = tuple(folder.left())
    return folder.folding


class _Folder:
    """Folds round by round: what one fold lays bare, the next one finds."""

    def __init__(
        self, model: nn.Module, inputs: Tensor | tuple[Any, ...], reference: nn.Module | None
    ) -> None:
        self.model, self.inputs, self.reference = model, inputs, reference
        self.proofs = [inputs]
        self.is_widened = reference is None
        self.folding = Folding()
        self.tolerance = TOLERANCES.get(_dtype(model), 1e-4)
        self.trials = TRIALS
        self.unproven: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def check_repeats(self) -> None:
        """Check that the network can be compared at all.

        Raises:
            InputError: it does not run, or its outputs are not finite, or not the same twice.
        """
        try:
            self.folding.difference = self._difference(self.inputs)
        except Exception as error:  # somebody else's forward may raise anything
            raise not_run(self.model, self.inputs, error) from error
        if not self.folding.difference <= self.tolerance:
            raise InputError(
                f"{type(self.model).__name__} cannot be verified: its outputs are not finite, or "
                "differ from call to call; give other inputs, or verify=False"
            )

    def round(self) -> bool:
        """Fold what can be folded now; returns whether anything was."""
        sites = [site for site in find_sites(self.model) if is_population_norm(site)]
        flow = trace_flow(self.model, self.inputs) if sites else Flow()
        self.reasons = {}
        plans: list[Plan] = []
        finder = Finder(self.model, flow)
        for site in sites:
            try:
                plans.append(self._planned(site, finder))
            except StaysError as error:
                self.reasons[site.name] = str(error)
        return self._settle(plans, "")

    def widen(self) -> bool:
        """Compare on inputs of other sizes, too; returns whether all has to be folded anew for it.

        Once: where these show a difference, they prove what is folded from then on.
        """
        if self.is_widened or self.reference is None or not self.folding.folded:
            return False
        self.is_widened = True
        probes = other_sizes(self.reference, self.inputs, self.tolerance)
        self.proofs += [each for each in probes if self._wrong(each)]
        if len(self.proofs) == 1:
            return False
        self.folding()
        self.folding.folded, self.trials = (), TRIALS
        return True

    def left(self) -> list[tuple[str, str]]:
        """Return the norm layers that stay, with reasons, in the order of the network."""
        return [(name, why + _hint(self.model, name)) for name, why in self.reasons.items()]

    def _planned(self, site: Site, finder: Finder) -> Plan:
        if site.name in self.unproven:
            raise StaysError(self.unproven[site.name])
        if site.module is self.model:
            raise StaysError("is the network itself")
        return planned(site, finder)

    def _settle(self, plans: Sequence[Plan], reason: str) -> bool:
        """Fold these, or those of them that can be proven; returns whether any was folded."""
        if not plans:
            return False
        if reason and self.trials <= 0:
            reason = f"not proven within {TRIALS} trials; together: {reason}"
            self._stay(plans, reason)
            return False
        undo = apply_(self.model, plans, self.folding.statistics)
        why = self._refuted()
        if not why:
            self.folding.add(undo)
            self.folding.folded += tuple(map(_entry, plans))
            return True
        undo()
        if len(plans) == 1:
            self._stay(plans, why)
            return False
        half = len(plans) // 2
        done = [self._settle(part, why) for part in (plans[:half], plans[half:])]
        return any(done)

    def _stay(self, plans: Sequence[Plan], why: str) -> None:
        self.unproven |= {plan.site.name: why for plan in plans}
        self.reasons |= {plan.site.name: why for plan in plans}

    def _refuted(self) -> str:
        """What is wrong with the network as it is folded now; nothing if it is proven."""
        if self.reference is None:
            return ""
        self.trials -= 1
        return next(filter(None, map(self._wrong, self.proofs)), "")

    def _wrong(self, inputs: Tensor | tuple[Any, ...]) -> str:
        """What is wrong on some inputs; nothing if the folded network is the same there."""
        where = "" if inputs is self.inputs else f" on inputs of {sizes_of(inputs)}"
        try:
            difference = self._difference(inputs)
        except Exception as error:  # somebody else's forward may raise anything
            said = f"folded, it raises {type(error).__name__}{where}: {error}"
            return " ".join(said.split())[:200]
        if not difference <= self.tolerance:
            return f"folded, the output differs by {difference:.2g} of its size{where}"
        if inputs is self.inputs:
            self.folding.difference = difference
        return ""

    def _difference(self, inputs: Tensor | tuple[Any, ...]) -> float:
        if self.reference is None:
            return math.nan
        return difference_of(self.reference, self.model, inputs, self.tolerance)


def _entry(plan: Plan) -> Folded:
    if plan.place is None:
        return Folded(plan.site.name, (plan.site.name,), "alone")
    return Folded(plan.site.name, tuple(plan.place.channels), plan.place.where)


def _hint(model: nn.Module, name: str) -> str:
    """What helps a norm in a block that can fold its branches itself."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:end])
        kind = type(model.get_submodule(path))
        method = next((each for each in FUSERS if callable(getattr(kind, each, None))), None)
        if method is not None:
            return f"; {path}.{method}() folds its block's branches into one, called before this"
    return ""


def _dtype(model: nn.Module) -> torch.dtype:
    """The coarsest precision of a network's weights."""
    dtypes = {each.dtype for each in model.parameters() if each.is_floating_point()}
    return max(dtypes, key=lambda each: torch.finfo(each).eps, default=torch.float32)


def _refuse(model: nn.Module) -> None:
    refuse_wrapped(model, "fold")
    if any(each.is_inference() for each in model.parameters()):
        raise InputError(
            "the model was made within torch.inference_mode, and its weights cannot be changed;"
            " take the folded copy that fold_batchnorm returns"
        )
