"""Sparse Reference Attention over a mesh: rows over `context`, heads over `tensor`.

Rows of the video lie spread over the axis `context` of c devices. Each device has
n heads (all of them divided over `tensor`); with u = gcd(n, c), r = c / u:

  Ulysses  an all-to-all within groups of u devices trades rows for heads: each device
           then holds n / u heads of 1 / r of the rows;
  ring     where r > 1, keys and values go round r devices, and the partial results
           meet through their log-sum-exp.

With r = 1 the reference's keys and values are spread by heads over both axes, so a
denoising step moves none of them. With r > 1 they are spread by rows and travel with
the own ones. Bytes that a device sends per block and forward pass, E bytes per number,
D / t channels on `tensor` of t, batch B, rows T:

  (1) Ulysses  4 B (T / c) (D / t) E (u - 1) / u                      q, k, v and output
  (2) ring     2 B ((T + R) / r) (D / (t u)) E (r - 1), and (1) with 2 R more rows

Reference rows attend within their segments by Ulysses alone; heads that c does not
divide are filled up with empty ones, for it is done once per request.
"""

import dataclasses

import jax
import jax.numpy as jnp
from avatar_kernels import reference_attention
from avatar_kernels.reference_attention.reference import MASKED
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from avatar_jax.nn import layouts


def target_attention(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B T N K"],
    v: Float[Array, "B T N K"],
    reference_k: Float[Array, "B R N K"],
    reference_v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B T"],
    reference_valid: Bool[Array, "B R"],
    window: reference_attention.LocalWindow | None = None,
    implementation: reference_attention.Implementation | None = None,
) -> Float[Array, "B T N K"]:
    """Call the kernel of that name on the mesh that is set, or on one device.

    Raises:
      NotImplementedError: a window where heads do not divide over `context`.
    """
    keywords = {"window": window, "implementation": implementation}
    layout = layouts.find_layout(q, implementation)
    if layout is None:
        return reference_attention.target_attention(
            q,
            k,
            v,
            reference_k,
            reference_v,
            valid=valid,
            reference_valid=reference_valid,
            **keywords,
        )
    if window is not None and layout.ring > 1:
        raise NotImplementedError(
            f"a window needs heads that divide over {layout.context} devices of mesh "
            f"axis 'context'; got {q.shape[2]} heads. Use fewer devices there."
        )
    rows = q.shape[1]
    q, k, v, valid = (layouts.pad(a, 1, layout.context) for a in (q, k, v, valid))
    own, reference = layout.rows(), layout.by_head()
    if layout.ring > 1:
        reference = layout.rows()
        reference_k, reference_v, reference_valid = (
            layouts.pad(a, 1, layout.context)
            for a in (reference_k, reference_v, reference_valid)
        )

    def attend(q, k, v, reference_k, reference_v, valid, reference_valid):
        sources = [(k, v, valid), (reference_k, reference_v, reference_valid)]
        q = _trade(q, layout)
        moved = [(_trade(k, layout), _trade(v, layout), valid), sources[1]]
        if layout.ring == 1:
            # All rows are here; without the padding, which a window would miscount.
            moved[0] = tuple(a[:, :rows] for a in moved[0])
            out, _ = _attend(q[:, :rows], moved, keywords)
            out = layouts.pad(out, 1, layout.context)
        else:
            moved[1] = tuple(_trade(a, layout) for a in sources[1][:2]) + sources[1][2:]
            out = _go_round(q, moved, layout, keywords)
        return _trade(out, layout, give=1, take=2)

    marks = layout.marks()
    out = jax.shard_map(
        attend,
        in_specs=(own, own, own, reference, reference, marks, marks),
        out_specs=own,
        check_vma=False,
    )(q, k, v, reference_k, reference_v, valid, reference_valid)
    return out[:, :rows]


def segment_attention(
    q: Float[Array, "B R N K"],
    k: Float[Array, "B R N K"],
    v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B R"],
    segment_ids: Int[Array, "B R"],
    implementation: reference_attention.Implementation | None = None,
) -> Float[Array, "B R N K"]:
    """Call the kernel of that name on the mesh that is set, or on one device."""
    layout = layouts.find_layout(q, implementation)
    if layout is None:
        return reference_attention.segment_attention(
            q,
            k,
            v,
            valid=valid,
            segment_ids=segment_ids,
            implementation=implementation,
        )
    _, rows, heads, _ = q.shape
    layout = dataclasses.replace(layout, ulysses=layout.context)
    filled = layout.tensor * layout.context
    q, k, v = (
        layouts.pad(layouts.pad(a, 1, layout.context), 2, filled) for a in (q, k, v)
    )
    valid = layouts.pad(valid, 1, layout.context)
    # What is filled up belongs to the last segment, so that no block meets all others.
    segment_ids = jnp.pad(segment_ids, ((0, 0), (0, -rows % layout.context)), "edge")

    def attend(q, k, v, valid, segment_ids):
        out = reference_attention.segment_attention(
            *(_trade(a, layout) for a in (q, k, v)),
            valid=valid,
            segment_ids=segment_ids,
            implementation=implementation,
        )
        return _trade(out, layout, give=1, take=2)

    own, marks = layout.rows(), layout.marks()
    out = jax.shard_map(
        attend,
        in_specs=(own, own, own, marks, marks),
        out_specs=own,
        check_vma=False,
    )(q, k, v, valid, segment_ids)
    return out[:, :rows, :heads]


def cross_attention(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B L N K"],
    v: Float[Array, "B L N K"],
    *,
    implementation: reference_attention.Implementation | None = None,
) -> Float[Array, "B T N K"]:
    """Attend to all of a short sequence (text) that every device of `context` holds."""

    def attend(q, k, v):
        return reference_attention.target_attention(
            q,
            k,
            v,
            k[:, :0],
            v[:, :0],
            valid=jnp.ones(k.shape[:2], bool),
            reference_valid=jnp.ones((len(k), 0), bool),
            implementation=implementation,
        )

    layout = layouts.find_layout(q, implementation)
    if layout is None:
        return attend(q, k, v)
    whole = PartitionSpec(layout.batch, None, layout.heads, None)
    out = jax.shard_map(
        attend,
        in_specs=(layout.rows(), whole, whole),
        out_specs=layout.rows(),
        check_vma=False,
    )(layouts.pad(q, 1, layout.context), k, v)
    return out[:, : q.shape[1]]


def _trade(
    a: Float[Array, "B rows heads K"],
    layout: layouts.Layout,
    *,
    give: int = 2,
    take: int = 1,
) -> Float[Array, "B more fewer K"]:
    """Give heads (axis 2) away and take rows (axis 1), or the other way (Ulysses)."""
    if layout.ulysses == 1:
        return a
    return jax.lax.all_to_all(
        a, layouts.CONTEXT, give, take, axis_index_groups=layout.groups, tiled=True
    )


def _attend(
    q: Float[Array, "B T N K"],
    sources: list[tuple[Array, Array, Array]],
    keywords: dict,
) -> tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    (k, v, valid), (reference_k, reference_v, reference_valid) = sources
    return reference_attention.target_attention(
        q,
        k,
        v,
        reference_k,
        reference_v,
        valid=valid,
        reference_valid=reference_valid,
        return_lse=True,
        **keywords,
    )


def _go_round(
    q: Float[Array, "B T N K"],
    sources: list[tuple[Array, Array, Array]],
    layout: layouts.Layout,
    keywords: dict,
) -> Float[Array, "B T N K"]:
    """Attend to one part of all keys after another, as they come round the ring.

    The next part is sent before the present one is used, so that both can overlap.
    """
    place = jax.lax.axis_index(layouts.CONTEXT) // layout.ulysses
    onward = [
        (device, (device + layout.ulysses) % layout.context)
        for device in range(layout.context)
    ]
    pairs = [source[:2] for source in sources]
    total = jnp.zeros(q.shape, jnp.float32)
    seen = jnp.full(q.shape[:3], MASKED)
    for turn in range(layout.ring):
        held, origin = pairs, (place - turn) % layout.ring
        if turn + 1 < layout.ring:
            pairs = jax.lax.ppermute(pairs, layouts.CONTEXT, onward)
        parts = [
            (*pair, _cut_part(marks, origin, layout.ring))
            for pair, (_, _, marks) in zip(held, sources, strict=True)
        ]
        out, lse = _attend(q, parts, keywords)
        together = jnp.logaddexp(seen, lse)
        total = total * jnp.exp(seen - together)[..., None]
        total = total + out.astype(jnp.float32) * jnp.exp(lse - together)[..., None]
        seen = together
    return total.astype(q.dtype)


def _cut_part(
    marks: Bool[Array, "B T"], part: Int[Array, ""], parts: int
) -> Bool[Array, "B t"]:
    length = marks.shape[1] // parts
    return jax.lax.dynamic_slice_in_dim(marks, part * length, length, axis=1)
