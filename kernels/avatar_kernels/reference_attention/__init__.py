"""Sparse Reference Attention (Avatar V, arXiv 2606.13872, section 2.1)."""

from avatar_kernels.reference_attention.api import (
    Implementation,
    LocalWindow,
    resolve,
    segment_attention,
    target_attention,
)

__all__ = [
    "Implementation",
    "LocalWindow",
    "resolve",
    "segment_attention",
    "target_attention",
]
