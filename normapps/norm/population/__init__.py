"""A model's population: the statistics of its norm layers over a data set, as a value."""

from .algebra import distance, layer_means, merge, mix
from .fingerprint import Fingerprint
from .measuring import measure
from .statistics import Population, apply_, population_layers

__all__ = [
    "Fingerprint",
    "Population",
    "apply_",
    "distance",
    "layer_means",
    "measure",
    "merge",
    "mix",
    "population_layers",
]
