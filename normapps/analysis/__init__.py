"""What normalization there is, and what it does in a model."""
