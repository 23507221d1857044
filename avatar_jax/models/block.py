"""One transformer block, in its two uses: on target rows and on reference rows.

Order (Avatar V, figure 1): self-attention (AdaLN), text, audio, motion, feed-forward
(AdaLN). Reference rows never look at target rows, so the reference pass runs first,
alone and once; the target pass reads its keys and values. Choice: motion enters every
block, not every k-th: blocks are one scan, and four tokens per latent cost little.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from jaxtyping import Array, Float

from avatar_jax.models import audio, motion, tokens
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.nn import attention, context_parallel, feedforward, fused, norms

CELLS = ("batch", None, "tokens", "width")  # logical axes of generated frames


@struct.dataclass
class TargetContext:
    """What every block needs to know of generated and still rows."""

    modulation: Array  # B 6 D float32: shift, scale, gate; shift, scale, gate
    turn: Array  # 1 T pairs, rotary angles
    valid: Array  # B T bool
    role: Array  # 1 T D, added before every block
    text: Array  # B L D
    audio: Array | None  # B F 4 D
    audio_slots: Array | None  # 12 D
    motion: Array | None  # B F 4 D
    frames: int = struct.field(pytree_node=False, default=1)  # generated latents


@struct.dataclass
class ReferenceContext:
    """What every block needs to know of reference and face rows."""

    modulation: Array  # 1 6 D float32, of t = 0 plus the learned offset
    rows: tokens.ReferenceRows
    role: Array  # B R D
    text: Array  # B L D, the empty prompt
    audio: Array | None  # B F 4 D
    audio_slots: Array | None  # 4 D
    motion: Array | None  # B F 4 D
    identity: Array | None  # B 4 D


class Block(nn.Module):
    """See the module's docstring; parameters are shared by both uses."""

    cfg: DiTConfig

    def setup(self) -> None:
        cfg, dtype = self.cfg, self.cfg.compute_dtype
        # Choice: outputs start small with depth (GPT-2); gates start at 1.
        scale = (2 * cfg.layers) ** -0.5
        gates = jnp.array([0, 0, 1, 0, 0, 1], jnp.float32)
        self.modulation = self.param(
            "modulation", lambda _: jnp.tile(gates[:, None], (1, cfg.width))
        )
        self.attention = attention.Attention(cfg.width, cfg.heads, scale, dtype)
        self.text_norm = norms.LayerNorm()
        self.text_attention = attention.Attention(cfg.width, cfg.heads, scale, dtype)
        if cfg.audio_width:
            rank = cfg.adapter_rank if cfg.reference_audio_width else None
            self.audio = audio.AudioAttention(cfg.width, cfg.heads, rank, dtype)
        if cfg.motion_width:
            self.motion = motion.MotionInjection(cfg.width, cfg.heads, dtype)
        if cfg.identity_width:
            self.identity_k = nn.Dense(cfg.width, dtype=dtype)
            self.identity_v = nn.Dense(cfg.width, dtype=dtype)
            self.identity_norm = norms.RMSNorm()
        self.feedforward = feedforward.FeedForward(
            cfg.width, cfg.mlp_width, scale, dtype
        )

    def target(
        self,
        x: Float[Array, "B T D"],
        reference: tuple[Array, Array, Array],
        context: TargetContext,
    ) -> Float[Array, "B T D"]:
        """Run on [generated | still] rows.

        Args:
          x: rows.
          reference: this block's keys `B R N K`, values and validity `B R`; R may be 0.
          context: shared by all blocks.
        """
        x = x + context.role.astype(x.dtype)
        shift, scale, gate, *after = self._modulation(context.modulation)
        q, k, v = self._projections(self._norm(x, shift, scale)[1], context.turn)
        reference_k, reference_v, reference_valid = reference
        mixed = context_parallel.target_attention(
            q,
            k,
            v,
            reference_k,
            reference_v,
            valid=context.valid,
            reference_valid=reference_valid,
            implementation=self.cfg.attention,
        )
        x = self._text(x, self._output(self.attention, mixed), gate, context.text)
        generated, still = _split_frames(x, context.frames)
        # A share of every frame for each device: whole frames do not come out even.
        generated = nn.with_logical_constraint(generated, CELLS)
        if context.audio is not None:
            generated = generated + self.audio.target(
                generated, context.audio, context.audio_slots
            )
        if context.motion is not None:
            generated = generated + self.motion.target(generated, context.motion)
        x = jnp.concatenate([rearrange(generated, "B F P D -> B (F P) D"), still], 1)
        return self._feedforward(x, after)

    def reference(
        self,
        x: Float[Array, "B R D"],
        context: ReferenceContext,
    ) -> tuple[Float[Array, "B R D"], tuple[Array, Array]]:
        """Run on reference rows; also return their keys and values for target rows.

        The identity tokens' keys and values are appended: they reach target rows only,
        and the cache holds everything that belongs to the person.
        """
        rows = context.rows
        x = x + context.role.astype(x.dtype)
        shift, scale, gate, *after = self._modulation(context.modulation)
        q, k, v = self._projections(self._norm(x, shift, scale)[1], rows.turn)
        mixed = context_parallel.segment_attention(
            q,
            k,
            v,
            valid=rows.valid,
            segment_ids=rows.segment_ids,
            implementation=self.cfg.attention,
        )
        x = self._text(x, self._output(self.attention, mixed), gate, context.text)
        is_video = ~rows.is_face[..., None]
        if context.audio is not None:
            heard = self.audio.reference(
                x, context.audio, context.audio_slots, rows.latent
            )
            x = x + jnp.where(is_video, heard, 0)
        if context.motion is not None:
            added = self.motion.reference(x, context.motion, rows.latent)
            x = x + jnp.where(is_video, added, 0)
        x = self._feedforward(x, after)
        if context.identity is not None:
            k, v = self._append_identity(k, v, context.identity)
        return x, (k, v)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        target: TargetContext,
        rows: Float[Array, "B R D"] | None,
        reference: ReferenceContext | None,
    ) -> None:
        """Create every parameter of both uses; called by `init` alone."""
        shape = (len(x), 0, self.cfg.heads, self.cfg.head_dim)
        empty = jnp.zeros(shape, self.cfg.compute_dtype)
        self.target(x, (empty, empty, jnp.zeros(shape[:2], bool)), target)
        if reference is not None:
            self.reference(rows, reference)

    def _modulation(self, shared: Float[Array, "b 6 D"]) -> list[Array]:
        rows = shared + self.modulation[None]
        return [rows[:, i : i + 1] for i in range(6)]

    def _projections(
        self, y: Float[Array, "B T D"], turn: Float[Array, "b T pairs"]
    ) -> tuple[Array, Array, Array]:
        layer = self.attention
        norm = functools.partial(
            fused.norm_rotary, turn=turn, implementation=self.cfg.attention
        )
        parts = layer.queries(y, norm=norm), layer.keys(y, norm=norm), layer.values(y)
        q, k, v = (attention.split_heads(a, self.cfg.heads) for a in parts)
        names = ("batch", "tokens", "heads", None)
        return tuple(nn.with_logical_constraint(a, names) for a in (q, k, v))

    def _output(
        self, layer: attention.Attention, mixed: Float[Array, "B T N K"]
    ) -> Float[Array, "B T D"]:
        return layer.output(rearrange(mixed, "B T N K -> B T (N K)"))

    def _norm(
        self, x: Float[Array, "B T D"], shift: Array, scale: Array, **residual: Array
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
        return fused.modulated_norm(
            x,
            shift,
            scale,
            **residual,
            head_dim=self.cfg.head_dim,
            implementation=self.cfg.attention,
        )

    def _text(
        self,
        x: Float[Array, "B T D"],
        mixed: Float[Array, "B T D"],
        gate: Float[Array, "b 1 D"],
        text: Float[Array, "B L D"],
    ) -> Float[Array, "B T D"]:
        """Add what self-attention has mixed, then what the text says of the sum."""
        layer = self.text_attention
        scale, bias = (vector[None, None] for vector in self.text_norm.vectors(x))
        x, normed = self._norm(x, bias, scale - 1, added=mixed, gate=gate)
        q, k, v = layer.queries(normed), layer.keys(text), layer.values(text)
        q, k, v = (attention.split_heads(a, self.cfg.heads) for a in (q, k, v))
        heard = context_parallel.cross_attention(
            q, k, v, implementation=self.cfg.attention
        )
        return x + self._output(layer, heard)

    def _feedforward(
        self, x: Float[Array, "B T D"], modulation: list[Array]
    ) -> Float[Array, "B T D"]:
        shift, scale, gate = modulation
        y = self.feedforward(self._norm(x, shift, scale)[1])
        x = (x + gate * y).astype(x.dtype)
        return nn.with_logical_constraint(x, ("batch", "tokens", "width"))

    def _append_identity(
        self, k: Array, v: Array, identity: Float[Array, "B I D"]
    ) -> tuple[Array, Array]:
        heads = self.cfg.heads
        extra_k = self.identity_norm(self.identity_k(identity))
        extra_v = self.identity_v(identity)
        k = jnp.concatenate([k, attention.split_heads(extra_k, heads)], 1)
        return k, jnp.concatenate([v, attention.split_heads(extra_v, heads)], 1)


def _split_frames(
    x: Float[Array, "B T D"], frames: int
) -> tuple[Float[Array, "B F P D"], Float[Array, "B P D"]]:
    """Split rows into generated latents and the still (one latent, always there)."""
    cells = x.shape[1] // (frames + 1)
    generated = rearrange(x[:, : frames * cells], "B (F P) D -> B F P D", P=cells)
    return generated, x[:, frames * cells :]


def init_stack(cfg: DiTConfig, rng: jax.Array) -> dict:
    """Initialise every layer; leaves get a leading layer axis for lax.scan."""
    target, reference = _example_contexts(cfg)
    rows = jnp.zeros((1, 2, cfg.width))
    use = reference if cfg.reference else None
    keys = jax.random.split(rng, cfg.layers)

    def init(key: jax.Array) -> dict:
        block = Block(cfg, parent=None)
        return block.init(key, rows, target, rows[:, :1], use)["params"]

    return jax.lax.map(init, keys)  # not vmap: collectives in groups have no batch


def _example_contexts(cfg: DiTConfig) -> tuple[TargetContext, ReferenceContext]:
    """Return contexts of one patch, for shapes alone."""
    pairs, one = cfg.head_dim // 2, jnp.zeros((1, 1), jnp.int32)
    four = jnp.zeros((1, 1, 4, cfg.width))
    row = jnp.zeros((1, 1, cfg.width))
    motion_tokens = four if cfg.motion_width else None
    target = TargetContext(
        modulation=jnp.zeros((1, 6, cfg.width)),
        turn=jnp.zeros((1, 2, pairs)),
        valid=jnp.ones((1, 2), bool),
        role=jnp.zeros((1, 2, cfg.width)),
        text=row,
        audio=four if cfg.audio_width else None,
        audio_slots=jnp.zeros((audio.SLOTS, cfg.width)),
        motion=motion_tokens,
    )
    rows = tokens.ReferenceRows(
        patches=row,
        turn=jnp.zeros((1, 1, pairs)),
        latent=one,
        segment_ids=one,
        is_face=one > 0,
        valid=one == 0,
    )
    reference = ReferenceContext(
        modulation=jnp.zeros((1, 6, cfg.width)),
        rows=rows,
        role=row,
        text=row,
        audio=four if cfg.reference_audio_width else None,
        audio_slots=jnp.zeros((4, cfg.width)),
        motion=motion_tokens,
        identity=row if cfg.identity_width else None,
    )
    return target, reference
