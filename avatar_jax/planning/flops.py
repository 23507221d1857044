"""Useful operations of the network by formula: 2 for each product and its sum.

Per sample, with T target rows (G of them generated), R reference rows, L text rows, A
speech tokens of width D, feed-forward width M, in each block of the target pass:

  (1) 8 T D^2 + 4 T (T + R) D         self-attention, reads the reference
  (2) 4 (T + L) D^2 + 4 T L D         text
  (3) 4 (G + A) D^2 + 4 G 12 D        speech; motion alike, with 4 tokens for 12
  (4) 4 T D M                         feed-forward

The reference pass has R for T and n of a row's own segment for T + R. Norms, softmax
and other work that grows with rows alone is left out, as are frozen judges.
"""

import dataclasses

from avatar_jax.models import audio, detail, motion, motion_head
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import FRAMES_PER_LATENT, count_frames

NEWTON_SCHULZ_STEPS = 5  # of optax's Muon


@dataclasses.dataclass(frozen=True)
class Rows:
    """What one sample is made of.

    Attributes:
      latents: generated.
      cells: patches of a latent frame.
      text: rows of a prompt.
      segments: reference latents of each segment.
      faces: patches of each face crop.
    """

    latents: int
    cells: int
    text: int
    segments: tuple[int, ...] = ()
    faces: tuple[int, ...] = ()

    @property
    def generated(self) -> int:
        """Generated rows."""
        return self.latents * self.cells

    @property
    def target(self) -> int:
        """Generated rows and those of the still."""
        return self.generated + self.cells

    @property
    def reference(self) -> int:
        """Reference and face rows."""
        return sum(self.segments) * self.cells + sum(self.faces)


def target_pass(cfg: DiTConfig, rows: Rows) -> int:
    """Count one call of the network that reads a reference cache."""
    width, audio_tokens = cfg.width, FRAMES_PER_LATENT * rows.latents
    seen = rows.target + rows.reference
    if rows.reference and cfg.identity_width:
        seen += cfg.identity_tokens
    block = _dense_block(cfg, rows.target, rows.text) + 4 * rows.target * seen * width
    if cfg.audio_width:
        block += _listen(width, rows.generated, audio_tokens, audio.SLOTS)
    if cfg.motion_width:
        block += _listen(width, rows.generated, audio_tokens, FRAMES_PER_LATENT)
    total = cfg.layers * block + _embed(cfg, rows.target, rows.text, rows.latents)
    if cfg.audio_width:
        total += _mlp(audio_tokens, cfg.audio_width, width)
    total += _read_out(cfg, rows)
    return total + (_motion_head(cfg, rows) if cfg.motion_width else 0)


def reference_pass(cfg: DiTConfig, rows: Rows) -> int:
    """Count the pass that fills a reference cache."""
    if not cfg.reference:
        return 0
    width, count, latents = cfg.width, rows.reference, sum(rows.segments)
    lengths = [n * rows.cells for n in rows.segments] + list(rows.faces)
    block = _dense_block(cfg, count, rows.text)
    block += 4 * sum(n**2 for n in lengths) * width
    heard = FRAMES_PER_LATENT * latents
    if cfg.reference_audio_width:
        block += _listen(width, count, heard, FRAMES_PER_LATENT)
        block += 4 * (count + 2 * heard) * width * cfg.adapter_rank
    if cfg.motion_width:
        block += _listen(width, count, heard, FRAMES_PER_LATENT)
    if cfg.identity_width:
        block += 4 * cfg.identity_tokens * width**2
    total = cfg.layers * block + _embed(cfg, count, rows.text, latents)
    if cfg.reference_audio_width:
        total += _mlp(heard, cfg.reference_audio_width, width)
    if cfg.identity_width:
        total += 2 * cfg.identity_width * cfg.identity_tokens * width
    return total


def train_step(
    cfg: DiTConfig, rows: Rows, *, clips: int, self_feeding: float = 0.0
) -> int:
    """Count a step without its optimiser: forward and twice that backward.

    Blocks that are recomputed are not counted: it is what the mathematics needs.

    Args:
      self_feeding: share of batches with one more forward pass.
    """
    forward = target_pass(cfg, rows) + reference_pass(cfg, rows)
    fed = self_feeding if cfg.motion_width else 0.0
    return round(clips * (3 + fed) * forward)


def muon(shapes: list[tuple[int, ...]]) -> int:
    """Count the orthogonalisation of matrices (stacked ones: layers, in, out)."""
    total = 0
    for shape in shapes:
        layers = shape[0] if len(shape) == 3 else 1
        short, long = sorted(shape[-2:])
        step = 4 * short**2 * long + 2 * short**3
        total += layers * NEWTON_SCHULZ_STEPS * step
    return total


def _dense_block(cfg: DiTConfig, count: int, text: int) -> int:
    """Count eqs. 1, 2 and 4 without the attention of eq. 1."""
    width = cfg.width
    own = 8 * count * width**2 + 4 * count * width * cfg.mlp_width
    return own + 4 * (count + text) * width**2 + 4 * count * text * width


def _listen(width: int, count: int, told: int, window: int) -> int:
    """Count eq. 3."""
    return 4 * (count + told) * width**2 + 4 * count * window * width


def _mlp(count: int, features: int, width: int) -> int:
    return 2 * count * (features * width + width**2)


def _embed(cfg: DiTConfig, count: int, text: int, latents: int) -> int:
    """Count patches, prompt, time and motion codes on their way to rows."""
    width = cfg.width
    total = 2 * count * cfg.patch**2 * cfg.input_channels * width
    total += _mlp(text, cfg.text_width, width)
    total += _mlp(1, cfg.time_features, width) + 12 * width**2
    if cfg.motion_width:
        pairs = 2 * cfg.motion_width * width + width**2
        total += 2 * FRAMES_PER_LATENT * latents * motion.KERNEL * pairs + 2 * width**2
    return total


def _read_out(cfg: DiTConfig, rows: Rows) -> int:
    """Count the linear head, or the convolutional one."""
    channels, inner = cfg.channels, cfg.detail_width
    if not inner:
        return 2 * rows.generated * cfg.width * cfg.patch**2 * channels
    cells = rows.generated * cfg.patch**2
    sources = (2 if cfg.still_concat else 1) * channels
    taps = detail.KERNEL[0] * detail.KERNEL[1]
    total = 2 * rows.generated * cfg.width * cfg.patch**2 * inner
    total += 2 * cells * inner * (cfg.input_channels + sources)
    total += 2 * cells * taps * inner * (detail.DEPTH * inner + channels)
    return total + 2 * cfg.width * ((detail.DEPTH + 1) * 2 * inner + sources)


def _motion_head(cfg: DiTConfig, rows: Rows) -> int:
    """Count the transformer that predicts codes frame by frame."""
    width, frames = cfg.width, count_frames(rows.latents)
    tokens = FRAMES_PER_LATENT * rows.latents
    taps = motion_head.KERNEL
    total = 2 * frames * (2 * taps + 1) * cfg.motion_width * width
    total += 2 * rows.latents * FRAMES_PER_LATENT * width**2
    total += _mlp(1, motion_head.TIME_FEATURES, width)
    if cfg.audio_width:
        total += _mlp(tokens, cfg.audio_width, width)
    block = (12 + (8 + 4 * taps + 4) * frames) * width**2 + 4 * frames**2 * width
    return total + motion_head.LAYERS * block
