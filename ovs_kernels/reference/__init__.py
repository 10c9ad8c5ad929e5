"""The operators in plain PyTorch, any float dtype, any device: definition, oracle and fallback."""

from .graph import knn_graph
from .pixels import lp_pixels, pixel_features

__all__ = ["knn_graph", "lp_pixels", "pixel_features"]
