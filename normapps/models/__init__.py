"""Architectures and their loading; after this import, `import timm` works in every installation."""

from .backends import guard

guard()
