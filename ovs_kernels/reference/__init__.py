"""The operators in plain PyTorch, any float dtype, any device: definition, oracle and fallback."""

from .graph import knn_graph
from .pixels import lp_pixels, pixel_features
from .propagate import lp_graph
from .transport import sinkhorn, transport_map
from .windows import merge_windows, merge_windows_backward

__all__ = [
    "knn_graph",
    "lp_graph",
    "lp_pixels",
    "merge_windows",
    "merge_windows_backward",
    "pixel_features",
    "sinkhorn",
    "transport_map",
]
