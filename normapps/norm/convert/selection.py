"""Selection: which norm layers of a model a caller means."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from ...errors import InputError, unknown
from .sites import Site, qualified

Patterns = str | Sequence[str]
"""Shell patterns of module names, one or several."""


def select(
    sites: Sequence[Site], kinds: Sequence[str], include: Patterns, exclude: Patterns
) -> list[Site]:
    """Return the sites of some kinds that the patterns take.

    A pattern matches a layer's name, or the name of a module that it stands in. A layer that
    stands in several places is taken if one of its names is, and left if one of them is.

    Args:
        sites: of a model.
        kinds: names of kinds, or `all`.
        include: take these only, if there are any.
        exclude: leave these.

    Raises:
        InputError: a pattern matches none of them; a layer that is taken cannot be read.
    """
    chosen = [site for site in sites if "all" in kinds or site.kinds & set(kinds)]
    wanted = [include] if isinstance(include, str) else list(include)
    unwanted = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in (*wanted, *unwanted):
        if not any(_fits(site, pattern) for site in chosen):
            names = {name for site in chosen for name in site.names}
            raise unknown("norm layer", pattern, names)
    taken = [
        site
        for site in chosen
        if (not wanted or any(_fits(site, pattern) for pattern in wanted))
        and not any(_fits(site, pattern) for pattern in unwanted)
    ]
    for site in taken:
        if site.refusal:
            raise InputError(
                f"{site.name}: {qualified(type(site.module))} {site.refusal}; exclude "
                f"'{site.names[0]}' to leave it as it is"
            )
    return taken


def _fits(site: Site, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for name in site.names for part in _above(name))


def _above(name: str) -> list[str]:
    """A name and those of the modules around it: a.b.c, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
