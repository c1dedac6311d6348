"""Domain models: one network whose batch norms keep a population for each of several domains.

The whole of domain-specific batch normalization (Chang et al. 2019) and of universal networks
(Bilen & Vedaldi 2017): convolutions are shared, statistics and recovery belong to a domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from .condition import ConditionedModel
from .convert.converter import convert_norm_
from .convert.fusing import refuse_fusing_
from .convert.origin import origin_of, set_origin
from .convert.originals import restore_original
from .convert.placing import place_
from .convert.selection import Patterns
from .convert.sites import Site, find_sites, read
from .convert.successor import Successor, share_hooks
from .layers.domain import DomainNorm
from .nesting import detached_copy
from .population.statistics import Population, apply_
from .routing import Domain, Route

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class DomainCost(NamedTuple):
    """How many numbers a domain needs for itself, and how many parameters all domains share."""

    parameters: int
    statistics: int
    shared: int


class DomainModel(ConditionedModel):
    """`model(x, domain)`: any network with its batch norms as banks of K domains.

    Every domain starts as the network was: with its statistics, scale and shift. A domain is one
    number for all samples, a tensor of one a sample (−1: unknown), weights (N, K), or None; see
    `Route` and `DomainNorm`.

    Gradient checkpointing, reentrant or not, gives the gradients that the network has without it,
    also where several calls share a backward pass, with the limits of `ConditionedModel.forward`
    (no double backward). What the backward pass recomputes is not
    counted: running statistics move once a batch, where torch's own batch norms, checkpointed,
    move twice.

    Networks that fold positions or windows into the batch before a batch norm (timm's LeViT and
    EfficientViT do) refuse a mixed batch, because their layers cannot tell the samples apart: give
    those one domain a batch. Threads may call one model at a time each with domains of their own.

    DDP needs no `find_unused_parameters`: a batch without a domain gives its rows gradients of 0.
    Where processes see different domains, give `sync=True`: else DDP, which by default spreads the
    buffers of process 0, loses the statistics of domains that only others saw.

    Args:
        model: a network with batch norms, of timm, torchvision or anybody's; a copy is converted.
        num_domains: K.
        share_affine: one scale and shift for all domains, so that only statistics are apart.
        unseen: what a sample of unknown domain gets: `mean` or `nearest`, see `DomainNorm`. The
            first domain layer decides on the nearest, the same for all layers.
        match, include, exclude: which layers, see `convert_norm`.
        sync: measure the batches of all processes together; None: the layers that did so.
        copy: convert a copy; without it the network itself is changed.

    Attributes:
        model: the network, converted.

    Raises:
        InputError: no layer to convert, or one without running statistics; an option that does
            not fit.

    Example:
        >>> model = DomainModel(timm.create_model("resnet18", pretrained=True), 2)
        >>> logits = model(images, torch.tensor([0, 0, 1, 1]))
        >>> plain = model.export(1)
    """

    def __init__(
        self,
        model: nn.Module,
        num_domains: int,
        *,
        share_affine: bool = False,
        unseen: str = "mean",
        match: str = "batch",
        include: Patterns = (),
        exclude: Patterns = (),
        sync: bool | None = None,
        copy: bool = True,
    ) -> None:
        options: dict[str, Any] = {"num_domains": num_domains, "share_affine": share_affine}
        options |= {"unseen": unseen} | ({} if sync is None else {"sync": sync})
        inner = detached_copy(model) if copy else model
        chosen: Any = {"match": match, "include": include, "exclude": exclude}
        conversion = convert_norm_(inner, "domain", **chosen, **options)
        for name, bank in _banks(inner).items():
            origin = origin_of(bank)
            if origin is not None and not origin.plain.get("track_running_stats", True):
                conversion.undo()
                raise InputError(
                    f"layer '{name}' keeps no running statistics for the domains to start from; "
                    f"leave it as it is: exclude=['{name}']"
                )
        super().__init__(inner)
        self.num_domains = num_domains

    def forward(  # type: ignore[override] # a condition by its own name
        self, x: Tensor, domain: Domain, *args: Any, **options: Any
    ) -> Any:
        """Run the network, each sample by its domain; further arguments are the network's.

        Raises:
            InputError: a domain out of range, or as many domains as there are no samples.
        """
        route = Route(domain, self.num_domains)
        out = super().forward(x, route, *args, **options)
        route.done = True
        return out

    def banks(self) -> dict[str, DomainNorm]:
        """Return the domain layers by their names in the network."""
        return _banks(self.model)

    def export(self, domain: int) -> nn.Module:
        """Return the network of one domain: a copy with the classes and keys of the original.

        Its logits are those of `model(x, domain)` to the bit.

        Raises:
            InputError: the domain is out of range.
        """
        plain = detached_copy(self.model)
        sites = [site for site in find_sites(plain) if isinstance(site.module, DomainNorm)]
        place_(plain, [(site, _original(site, domain)) for site in sites])
        refuse_fusing_(plain)
        return plain

    def population(self, domain: int) -> Population:
        """Return the statistics of one domain as a value that fits the network it exports.

        Raises:
            InputError: the domain is out of range.
        """
        return Population.of(self.export(domain))

    def parameters_of(self, domain: int) -> dict[str, Tensor]:
        """Return the scales and shifts that one domain has for itself; none where they are shared.

        By the names of the exported network, as views (C,) of the banks' parameters: to read, to
        save, to write under `no_grad`. An optimizer takes the whole parameters.

        Raises:
            InputError: the domain is out of range.
        """
        return {name: row for name, row in self.state_of(domain).items() if not _counted(name)}

    def state_of(self, domain: int) -> dict[str, Tensor]:
        """Return all that one domain has for itself, statistics too; `load_domain` takes it.

        By the names of the exported network, as views of the banks' rows.

        Raises:
            InputError: the domain is out of range.
        """
        return {
            f"{name}.{key}": row
            for name, bank in self.banks().items()
            for key, row in bank.own(domain).items()
        }

    def load_domain(
        self,
        domain: int,
        source: nn.Module | Mapping[str, Tensor] | Population,
        *,
        strict: bool = True,
    ) -> None:
        """Set what one domain has for itself.

        Args:
            domain: its number.
            source: a network as `export` returns it, a state dict of one, what `state_of`
                returned, or a population, which changes the statistics alone; layers that it
                names in `unreached` stay. Scales and shifts that all domains share stay.
            strict: refuse a population that was not measured with the weights of `export(domain)`,
                or lacks a layer; see `apply_`.

        Raises:
            InputError: the domain is out of range, a layer's values are missing or of another
                shape, or the population belongs to other weights; nothing has changed then.
        """
        if isinstance(source, Population):
            measured = source
            source = self.export(domain)
            apply_(source, measured, strict=strict)
        values = source.state_dict() if isinstance(source, nn.Module) else source
        wanted = self.state_of(domain)
        for name, row in wanted.items():
            if name not in values or values[name].shape != row.shape:
                got = tuple(values[name].shape) if name in values else "nothing"
                raise InputError(f"'{name}' of domain {domain}: {got}, needs {tuple(row.shape)}")
        with torch.no_grad():
            for name, row in wanted.items():
                row.copy_(values[name])

    def add_domain(self, from_domain: int = 0) -> int:
        """Add a domain that starts as another one is; return its number.

        The banks get new, larger parameters: an optimizer made before knows only the old ones.

        Raises:
            InputError: the domain to start from is out of range.
        """
        for bank in self.banks().values():
            bank.grow(from_domain)
        self.num_domains += 1
        return self.num_domains - 1

    def cost(self) -> DomainCost:
        """Return what a domain costs: its own parameters and statistics, beside the shared ones."""
        own = {name: row.numel() for name, row in self.state_of(0).items()}
        parameters = sum(size for name, size in own.items() if not _counted(name))
        everything = sum(each.numel() for each in self.model.parameters())
        shared = everything - parameters * self.num_domains
        return DomainCost(parameters, sum(own.values()) - parameters, shared)


def _banks(model: nn.Module) -> dict[str, DomainNorm]:
    return {name: each for name, each in model.named_modules() if isinstance(each, DomainNorm)}


def _original(site: Site, domain: int) -> Successor:
    """One domain of a bank as the layer that stood there."""
    bank: Any = site.module
    branch = bank.branch(domain)
    for name, child in bank.named_children():
        branch.add_module(name, child)  # what the original kept beside
    set_origin(branch, origin_of(bank))
    share_hooks(bank, branch)
    own: Any = read(branch)
    own.names = site.names
    return restore_original(own)


def _counted(name: str) -> bool:
    return name.rpartition(".")[2] in _STATISTICS
