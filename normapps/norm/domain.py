"""Domain models: one network whose batch norms keep a population for each of several domains.

The whole of domain-specific batch normalization (Chang et al. 2019) and of universal networks
(Bilen & Vedaldi 2017): convolutions are shared, statistics and recovery belong to a domain. With
other layers in their place, AutoDIAL (Carlucci et al. 2017), TransNorm (Wang et al. 2019) and
domain-specific whitening (Roy et al. 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError, unknown
from .condition import ConditionedModel
from .convert.converter import convert_norm_
from .convert.fusing import refuse_fusing_
from .convert.origin import origin_of, set_origin
from .convert.originals import restore_original
from .convert.placing import place_
from .convert.selection import Patterns, select
from .convert.sites import Site, find_sites, read
from .convert.successor import Successor, share_hooks
from .layers.autodial import AutoDIAL
from .layers.domain import DomainNorm
from .layers.domain_whitening import DomainWhitening
from .nesting import detached_copy
from .population.statistics import Population, apply_
from .routing import Domain, Route

KINDS = ("domain", "autodial", "transnorm", "domain_whitening")
"""What a network's batch norms can become: names of `list_norms()`."""

_BATCH_NORMS = ("batch", "ghost", "streaming", "domain")
"""Layers of ours that a domain can start from, and be what they were."""

_STATISTICS = ("running_mean", "running_var", "running_cov", "num_batches_tracked")


class DomainCost(NamedTuple):
    """How many numbers a domain needs for itself, and how many parameters all domains share."""

    parameters: int
    statistics: int
    shared: int


class DomainModel(ConditionedModel):
    """`model(x, domain)`: any network with its batch norms as banks of K domains.

    Every domain starts as the network was: with its statistics, scale and shift (but TransNorm
    doubles what comes out of each layer, and whitening mixes channels). A domain is one
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
        kind: `domain` (`DomainNorm`), `autodial` (`AutoDIAL`), `transnorm` (`TransNorm`) or
            `domain_whitening` (`DomainWhitening`).
        share_affine: one scale and shift for all domains, so that only statistics are apart;
            the other kinds than `domain` always share them.
        unseen: what a sample of unknown domain gets: `mean` or `nearest`, see `DomainNorm`. The
            first domain layer decides on the nearest, the same for all layers.
        match, include, exclude: which layers, see `convert_norm`.
        sync: measure the batches of all processes together; None: the layers that did so.
        copy: convert a copy; without it the network itself is changed.
        options: the kind's own: `alpha` of AutoDIAL, `group_size` and `eps` of whitening.

    Attributes:
        model: the network, converted.
        kind: as given.

    Raises:
        InputError: no layer to convert, one without running statistics, or one that a batch norm
            was turned into and that computes something else; an unknown kind, or an option that
            does not fit.

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
        kind: str = "domain",
        share_affine: bool = False,
        unseen: str = "mean",
        match: str = "batch",
        include: Patterns = (),
        exclude: Patterns = (),
        sync: bool | None = None,
        copy: bool = True,
        **options: Any,
    ) -> None:
        if kind not in KINDS:
            raise unknown("kind of domain model", kind, KINDS)
        options |= {"num_domains": num_domains, "unseen": unseen}
        options |= {"share_affine": share_affine} if kind == "domain" else {}
        options |= {} if sync is None else {"sync": sync}
        inner = detached_copy(model) if copy else model
        chosen: Any = {"match": match, "include": include, "exclude": exclude}
        _refuse_others(inner, match, include, exclude)
        conversion = convert_norm_(inner, kind, **chosen, **options)
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
        self.kind = kind

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

        Its logits are those of `model(x, domain)` to the bit. The statistics of AutoDIAL are
        mixed and the gains of TransNorm are in the scales and shifts. Whitening has no class in
        torch: its layers come out as our `CholeskyNorm`, which `steps` makes of the original's.

        Raises:
            InputError: the domain is out of range, or a TransNorm has no scale for its gain.
        """
        return self._plain(domain, settled=True)

    def steps(self) -> list[dict[str, Any]]:
        """Return what makes the network that was given one of `export`'s shape, as JSON values.

        None where the classes are the original's; for whitening, the `steps` of the builder
        `converted`, with which `save_model` stores it.
        """
        banks: dict[tuple[int, float], list[str]] = {}
        for name, bank in self.banks().items():
            if isinstance(bank, DomainWhitening):
                banks.setdefault((bank.group_size, bank.eps), []).append(name)
        return [
            {"to": "cholesky", "layers": names, "options": {"group_size": size, "eps": eps}}
            for (size, eps), names in banks.items()
        ]

    def population(self, domain: int) -> Population:
        """Return the statistics of one domain as a value that fits the network it exports.

        Those that were measured: of AutoDIAL before they are mixed, of whitening before the
        identity takes its share. In the exported network they already are.

        Raises:
            InputError: the domain is out of range.
        """
        own = Population.of(self._plain(domain, settled=False))
        return dataclasses.replace(Population.of(self.export(domain)), layers=own.layers)

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
                names in `unreached` stay. Scales and shifts that all domains share stay. An
                exported network of AutoDIAL or whitening has statistics that are not the
                domain's own, and is refused.
            strict: refuse a population that was not measured with the weights of `export(domain)`,
                or lacks a layer; see `apply_`.

        Raises:
            InputError: the domain is out of range, a layer's values are missing or of another
                shape, the population belongs to other weights, or a network cannot be taken;
                nothing has changed then.
        """
        if isinstance(source, Population):
            values = self._with(domain, source, strict)
        else:
            values = source.state_dict() if isinstance(source, nn.Module) else dict(source)
            self._refuse_network(domain, values)
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
            InputError: the domain to start from is out of range; or the kind is AutoDIAL or
                TransNorm, whose other domains would change by one more.
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

    def _plain(self, domain: int, settled: bool) -> nn.Module:
        """The network of one domain, with what it is normalized with or with what it holds."""
        plain = detached_copy(self.model)
        sites = [site for site in find_sites(plain) if isinstance(site.module, DomainNorm)]
        place_(plain, [(site, _original(site, domain, settled)) for site in sites])
        refuse_fusing_(plain)
        return plain

    def _with(self, domain: int, population: Population, strict: bool) -> dict[str, Tensor]:
        """The state dict of one domain's own network with a population in it."""
        apply_(self.export(domain), population, strict=strict)  # tells what does not fit
        own = self._plain(domain, settled=False)
        apply_(own, population, strict=False)
        return own.state_dict()

    def _refuse_network(self, domain: int, values: Mapping[str, Tensor]) -> None:
        """Refuse what says more than `state_of`, where an exported network's statistics differ."""
        differ = (AutoDIAL, DomainWhitening)
        kinds = [type(bank).__name__ for bank in self.banks().values() if isinstance(bank, differ)]
        more = [name for name in values if name not in self.state_of(domain)]
        if kinds and more:
            raise InputError(
                f"a domain of {kinds[0]} takes what state_of returned, or a population, and no "
                f"network, whose statistics are not the domain's own ('{more[0]}')"
            )


def _refuse_others(model: nn.Module, match: str, include: Patterns, exclude: Patterns) -> None:
    """Refuse layers that were batch norms once, such as those of IBN: banks would lose what is not.

    Raises:
        InputError: naming the first.
    """
    for site in select(find_sites(model), [match], include, exclude):
        if site.is_ours and site.norm not in _BATCH_NORMS:
            raise InputError(
                f"layer '{site.name}' is {type(site.module).__name__}, and a bank of batch norms"
                " would compute something else; give the network with its batch norms, or leave"
                f" the layer as it is: exclude=['{site.name}']"
            )


def _banks(model: nn.Module) -> dict[str, DomainNorm]:
    return {name: each for name, each in model.named_modules() if isinstance(each, DomainNorm)}


def _original(site: Site, domain: int, settled: bool) -> Successor:
    """One domain of a bank as the layer that stood there, or as ours where torch has none."""
    bank: Any = site.module
    branch = bank.branch(domain, settled=settled)
    for name, child in bank.named_children():
        branch.add_module(name, child)  # what the original kept beside
    set_origin(branch, origin_of(bank))
    share_hooks(bank, branch)
    if isinstance(bank, DomainWhitening):
        return Successor(branch)
    own: Any = read(branch)
    own.names = site.names
    return restore_original(own)


def _counted(name: str) -> bool:
    return name.rpartition(".")[2] in _STATISTICS
