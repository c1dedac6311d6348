"""Architectures and their loading."""
