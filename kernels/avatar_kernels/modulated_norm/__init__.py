"""Residual, layer norm, scale and shift (AdaLN), in one pass."""

from avatar_kernels.modulated_norm.api import modulated_norm
from avatar_kernels.modulated_norm.reference import EPS, layer_norm, modulate

__all__ = ["EPS", "layer_norm", "modulate", "modulated_norm"]
