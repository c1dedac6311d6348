"""A model's channel graph: which channels live and die together, and how to cut them out."""

from __future__ import annotations

from .graph import Atoms, ChannelGraph, Cost, Cut, Group, Keep

__all__ = ["Atoms", "ChannelGraph", "Cost", "Cut", "Group", "Keep"]
