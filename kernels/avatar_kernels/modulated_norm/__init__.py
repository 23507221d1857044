"""Residual, layer norm, scale and shift (AdaLN), in one pass."""

from avatar_kernels.modulated_norm.api import modulated_norm

__all__ = ["modulated_norm"]
