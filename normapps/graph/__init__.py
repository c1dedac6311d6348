"""A model's channel graph: which channels live and die together, and how to cut them out."""

from __future__ import annotations

from .graph import Atoms, ChannelGraph, Cost, Cut, Group, Keep
from .trace import trace_channels

__all__ = ["Atoms", "ChannelGraph", "Cost", "Cut", "Group", "Keep", "trace_channels"]
