"""Names of the TAVR transformer's tensors: Wan's, and those of speech and reference.

A `DiTConfig` with more parts than TAVR has takes over the same tensors; the others keep
the values that the model starts with, whose outputs are zero (see `warm_start`).
"""

import dataclasses
from collections.abc import Iterator

from avatar_jax.models import audio
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import FRAMES_PER_LATENT
from avatar_jax.weights import wan
from avatar_jax.weights.table import Entry

FLAGS = 2  # channels of its patches: reference, motion prefix
ROTARY_SCALE = 1.5
KEY = "aud_embedding.0.weight"  # which Wan's checkpoints do not have


def entries(cfg: DiTConfig) -> list[Entry]:
    """List the tensors; no dialect but the original is known.

    Raises:
      ValueError: the config lacks a part of TAVR's.
    """
    if not (cfg.reference and cfg.audio_width and cfg.reference_audio_width):
        raise ValueError(
            f"reference={cfg.reference}, audio_width={cfg.audio_width}, "
            f"reference_audio_width={cfg.reference_audio_width}; TAVR has all three."
        )
    listed = [*wan.entries(cfg, flags=FLAGS), *_top(cfg)]
    for layer in range(cfg.layers):
        listed += _audio(cfg, layer)
    return listed


def read_config(
    shapes: wan.Shapes, *, heads: int | None = None, still_concat: bool = False
) -> DiTConfig:
    """Build the config from the shapes of a checkpoint, as `wan.read_config` does."""
    adapter = "blocks.0.audio_attn.videoref_aud_q_adapter.1.weight"
    return dataclasses.replace(
        wan.read_config(shapes, heads=heads, still_concat=still_concat),
        audio_width=wan.shape_of(shapes, KEY)[1],
        reference=True,
        reference_audio_width=wan.shape_of(shapes, "videoref_aud_embedding.0.weight")[
            1
        ],
        adapter_rank=wan.shape_of(shapes, adapter)[0],
        rotary_scale=ROTARY_SCALE,
    )


def _top(cfg: DiTConfig) -> Iterator[Entry]:
    width = cfg.width
    heard, own = cfg.audio_width, cfg.reference_audio_width
    yield from wan.mlp("aud_embedding", "embed/audio/embedding", (heard, width, width))
    path = "embed/reference_audio/embedding"
    yield from wan.mlp("videoref_aud_embedding", path, (own, width, width))
    for name, shape, path in (
        ("null_audio_feature.weight", (1, heard), "audio/null"),
        ("null_videoref_audio_feature.weight", (1, own), "reference_audio/null"),
        ("audio_pos_embedding.weight", (audio.SLOTS, width), "audio_slots"),
        (
            "videoref_audio_pos_embedding.weight",
            (FRAMES_PER_LATENT, width),
            "reference_slots",
        ),
        ("ref_pos_embedding.weight", (1, width), "still_role"),
        ("cross_videoref_pos_embedding.weight", (1, width), "reference_role"),
        ("time_embedding_videoref", (1, width), "reference_time"),
    ):
        yield Entry(name, shape, f"embed/{path}")


def _audio(cfg: DiTConfig, layer: int) -> Iterator[Entry]:
    width, rank = cfg.width, cfg.adapter_rank
    name = f"blocks.{layer}.audio_attn"
    yield from wan.norm(f"blocks.{layer}.norm4", "blocks/audio/norm", width, layer)
    yield from wan.attention(name, "blocks/audio/attention", width, layer)
    for part in "qkv":
        theirs = f"{name}.videoref_aud_{part}_adapter"
        ours = f"blocks/audio/adapter_{part}"
        yield from wan.norm(f"{theirs}.0", f"{ours}/norm", width, layer)
        yield from wan.linear(f"{theirs}.1", f"{ours}/down", width, rank, layer)
        yield from wan.linear(f"{theirs}.3", f"{ours}/up", rank, width, layer)
