"""Supervised training that several applications share: options, pools, batches, scores."""
