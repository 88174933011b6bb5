"""Manifold: one file id for every model provider."""

__version__ = "0.1.0"
