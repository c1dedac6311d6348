"""Image translation by the same layers and losses: unpaired, and from label maps."""
