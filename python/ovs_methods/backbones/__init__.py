"""Backbones: an image becomes dense features."""

from .dinov2 import DinoV2

__all__ = ["DinoV2"]
