"""Fused norms on the mesh that is set: rows over `context`, channels whole.

Kernels are opaque to the partitioner, so each is called on every device's own rows. All
of these norms are over the full width: where `tensor` divides it, XLA does the work.
"""

import functools

import jax
from avatar_kernels import modulated_norm as modulated
from avatar_kernels import norm_rotary as rotary
from avatar_kernels import reference_attention, tpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from avatar_jax.nn import layouts
from avatar_jax.nn.layouts import CONTEXT, Layout

Implementation = reference_attention.Implementation


def norm_rotary(
    x: Float[Array, "B T D"],
    gain: Float[Array, " D"],
    *,
    turn: Float[Array, "b T pairs"],
    implementation: Implementation | None = None,
) -> Float[Array, "B T D"]:
    """Norm projected queries or keys over their width and turn pairs of channels."""
    name, layout = _find(x, 2 * turn.shape[-1], implementation)
    run = functools.partial(rotary.norm_rotary, implementation=name)
    if layout is None:
        return run(x, gain, turn)
    rows = x.shape[1]
    x, turn = (layouts.pad(a, 1, layout.context) for a in (x, turn))
    by_row = _by_row(layout)
    turns = PartitionSpec(layout.batch if len(turn) > 1 else None, CONTEXT, None)
    out = jax.shard_map(
        run,
        in_specs=(by_row, PartitionSpec(), turns),
        out_specs=by_row,
        check_vma=False,
    )(x, gain, turn)
    return out[:, :rows]


def modulated_norm(
    x: Float[Array, "B T D"],
    shift: Float[Array, "b 1 D"],
    scale: Float[Array, "b 1 D"],
    *,
    added: Float[Array, "B T D"] | None = None,
    gate: Float[Array, "g 1 D"] | None = None,
    head_dim: int,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"]]:
    """Add a gated branch, if one is given; return the sum and its AdaLN rows."""
    name, layout = _find(x, head_dim, implementation)

    def run(x, shift, scale, added, gate):
        return modulated.modulated_norm(
            x, shift, scale, added=added, gate=gate, implementation=name
        )

    if layout is None:
        return run(x, shift, scale, added, gate)
    rows, by_row = x.shape[1], _by_row(layout)

    def vector(v: Float[Array, "b 1 D"] | None) -> PartitionSpec:
        return PartitionSpec(layout.batch if v is not None and len(v) > 1 else None)

    x = layouts.pad(x, 1, layout.context)
    if added is not None:
        added = layouts.pad(added, 1, layout.context)
    summed, out = jax.shard_map(
        run,
        in_specs=(by_row, vector(shift), vector(scale), by_row, vector(gate)),
        out_specs=(by_row, by_row),
        check_vma=False,
    )(x, shift, scale, added, gate)
    return summed[:, :rows], out[:, :rows]


def _find(
    x: Float[Array, "B T D"], head_dim: int, implementation: Implementation | None
) -> tuple[Implementation, Layout | None]:
    """Return whose code runs, and how rows lie; None: XLA or one device."""
    shape = (*x.shape[:2], x.shape[2] // head_dim, head_dim)
    q = jax.ShapeDtypeStruct(shape, x.dtype)
    name = reference_attention.resolve(implementation, q)
    if not name.startswith("mosaic_tpu") or x.shape[2] % tpu.LANES:
        return "xla", None
    layout = layouts.find_layout(q, name)
    if layout is not None and layout.tensor > 1:
        return "xla", None
    return name, layout


def _by_row(layout: Layout) -> PartitionSpec:
    return PartitionSpec(layout.batch, CONTEXT, None)
