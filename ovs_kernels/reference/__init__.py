"""The operators in plain PyTorch, any float dtype, any device: definition, oracle and fallback."""

from .adaptive import adaptive_conv, adaptive_conv_filters_backward, adaptive_conv_input_backward
from .affinity import affinity_pool
from .attention import attention_mean
from .crf import dense_crf, permutohedral_filter
from .graph import knn_graph
from .markov import doubly_stochastic, markov_velocity
from .metrics import boundary_counts, confusion_matrix
from .pamr import pamr, pamr_backward, pamr_weights
from .pixels import lp_pixels, pixel_features
from .propagate import lp_graph
from .templates import fuse_experts, template_entropy
from .transport import sinkhorn, transport_map
from .upsample import joint_bilateral_upsample, joint_bilateral_upsample_backward
from .windows import merge_windows, merge_windows_backward

__all__ = [
    "adaptive_conv",
    "adaptive_conv_filters_backward",
    "adaptive_conv_input_backward",
    "affinity_pool",
    "attention_mean",
    "boundary_counts",
    "confusion_matrix",
    "dense_crf",
    "doubly_stochastic",
    "fuse_experts",
    "joint_bilateral_upsample",
    "joint_bilateral_upsample_backward",
    "knn_graph",
    "lp_graph",
    "lp_pixels",
    "markov_velocity",
    "merge_windows",
    "merge_windows_backward",
    "pamr",
    "pamr_backward",
    "pamr_weights",
    "permutohedral_filter",
    "pixel_features",
    "sinkhorn",
    "template_entropy",
    "transport_map",
]
