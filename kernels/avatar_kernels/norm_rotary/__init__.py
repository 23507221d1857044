"""RMS norm and rotary position of queries and keys, in one pass."""

from avatar_kernels.norm_rotary.api import norm_rotary
from avatar_kernels.norm_rotary.reference import rms_norm, rotate

__all__ = ["norm_rotary", "rms_norm", "rotate"]
