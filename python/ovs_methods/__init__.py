"""ovs_methods: segmentation methods built on `ovs_kernels`, and the command `ovs`.

An image becomes dense features (`backbones`), a class becomes embeddings (`vocabulary`), and both become a
label map (`methods`). Importing this package imports nothing heavy.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ovs-kernels")
except PackageNotFoundError:  # a source tree on the path, not an installation
    __version__ = "0.0.0"

__all__ = ["__version__"]
