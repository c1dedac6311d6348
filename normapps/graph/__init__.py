"""A model's channel graph: which channels live and die together, and how to cut them out."""
