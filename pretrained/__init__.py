"""Weights that ship with the package, one folder a network."""
