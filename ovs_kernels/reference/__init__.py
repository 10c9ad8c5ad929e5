"""The operators in plain PyTorch, any float dtype, any device: definition, oracle and fallback."""

from .graph import knn_graph
from .pixels import lp_pixels, pixel_features
from .propagate import lp_graph
from .upsample import joint_bilateral_upsample, joint_bilateral_upsample_backward
from .windows import merge_windows, merge_windows_backward

__all__ = [
    "joint_bilateral_upsample",
    "joint_bilateral_upsample_backward",
    "knn_graph",
    "lp_graph",
    "lp_pixels",
    "merge_windows",
    "merge_windows_backward",
    "pixel_features",
]
