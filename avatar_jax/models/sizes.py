"""The named sizes of the network.

TINY runs on a laptop's CPU and ships with weights. SMALL trains on one GPU. BASE and
LARGE have the widths of Wan2.1 1.3B and 14B; LARGE as it stands here is exactly TAVR's
layout (18,905,907,264 parameters). Stages switch parts on with `dataclasses.replace`.
"""

import dataclasses

from avatar_jax.models.dit_config import DiTConfig

# Choice: what a small network needs to hold a face and to move its lips is the still
# beside every row, the clean prediction and the convolutional read-out, without which
# 256 values of a patch pass through 128 channels. All were measured to matter.
TINY = DiTConfig(
    width=128,
    mlp_width=512,
    heads=4,
    layers=4,
    channels=64,
    text_width=64,
    adapter_rank=32,
    detail_width=96,
    still_concat=True,
    prediction="clean",
)

SMALL = dataclasses.replace(
    TINY,
    width=768,
    mlp_width=3072,
    heads=12,
    layers=12,
    detail_width=192,
    dtype="bfloat16",
)

BASE = DiTConfig(
    width=1536,
    mlp_width=8960,
    heads=12,
    layers=30,
    channels=16,
    audio_width=8192,
    motion_width=69,
    remat=True,
    dtype="bfloat16",
)

LARGE = DiTConfig(
    width=5120,
    mlp_width=13824,
    heads=40,
    layers=40,
    channels=16,
    audio_width=8192,
    reference=True,
    reference_audio_width=2048,
    rotary_scale=1.5,
    remat=True,
    dtype="bfloat16",
)
