"""The operators in plain PyTorch, any float dtype, any device: definition, oracle and fallback."""

from .pixels import lp_pixels, pixel_features

__all__ = ["lp_pixels", "pixel_features"]
