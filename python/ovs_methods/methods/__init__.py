"""Methods: features and a vocabulary become scores at the working resolution."""

from .coarse import coarse
from .pixels import check_propagation, pixels

METHODS = {"coarse": coarse, "pixels": pixels}

__all__ = ["METHODS", "check_propagation", "coarse", "pixels"]
