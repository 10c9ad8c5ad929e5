"""ovs_kernels: the operations of training-free open-vocabulary segmentation as C++ and CUDA kernels.

Functions take torch tensors (CPU or CUDA), numpy arrays or cupy arrays and return the caller's kind.
`python -m ovs_kernels` tells what this installation can do.
"""

from importlib.metadata import PackageNotFoundError, version

from . import reference
from .pixels import PropagationInfo, lp_pixels
from .propagate import lp_graph

try:
    __version__ = version("ovs-kernels")
except PackageNotFoundError:  # a source tree on the path, not an installation
    __version__ = "0.0.0"

__all__ = ["PropagationInfo", "__version__", "lp_graph", "lp_pixels", "reference"]
