"""The operators in plain PyTorch, any float dtype, any device: definition, oracle and fallback."""

from .pixels import lp_pixels, pixel_features
from .propagate import lp_graph

__all__ = ["lp_graph", "lp_pixels", "pixel_features"]
