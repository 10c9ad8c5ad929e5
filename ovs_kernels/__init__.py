"""ovs_kernels: the operations of training-free open-vocabulary segmentation as C++ and CUDA kernels.

Functions take torch tensors (CPU or CUDA), numpy arrays or cupy arrays and return the caller's kind.
`python -m ovs_kernels` tells what this installation can do.
"""

from importlib.metadata import PackageNotFoundError, version

from . import compat, reference
from .adaptive import adaptive_conv
from .affinity import affinity_pool
from .attention import AttentionInfo, attention_mean
from .crf import dense_crf, permutohedral_filter
from .graph import Graph, knn_graph
from .markov import MarkovInfo, ScalingInfo, doubly_stochastic, markov_velocity
from .metrics import boundary_iou, confusion_matrix
from .pamr import pamr
from .pixels import PropagationInfo, lp_pixels
from .propagate import lp_graph, lp_patches
from .templates import TemplateScores, fuse_experts, template_entropy
from .transport import SinkhornInfo, sinkhorn, transport_map
from .upsample import joint_bilateral_upsample
from .windows import merge_windows, window_boxes

try:
    __version__ = version("ovs-kernels")
except PackageNotFoundError:  # a source tree on the path, not an installation
    __version__ = "0.0.0"

__all__ = [
    "AttentionInfo",
    "Graph",
    "MarkovInfo",
    "PropagationInfo",
    "ScalingInfo",
    "SinkhornInfo",
    "TemplateScores",
    "__version__",
    "adaptive_conv",
    "affinity_pool",
    "attention_mean",
    "boundary_iou",
    "compat",
    "confusion_matrix",
    "dense_crf",
    "doubly_stochastic",
    "fuse_experts",
    "joint_bilateral_upsample",
    "knn_graph",
    "lp_graph",
    "lp_patches",
    "lp_pixels",
    "markov_velocity",
    "merge_windows",
    "pamr",
    "permutohedral_filter",
    "reference",
    "sinkhorn",
    "template_entropy",
    "transport_map",
    "window_boxes",
]
