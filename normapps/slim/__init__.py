"""Network slimming: sparse scales, pruning by them, and what makes up for it."""
