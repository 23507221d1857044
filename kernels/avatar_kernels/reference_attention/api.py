"""The public functions of Sparse Reference Attention: check shapes, pick the code."""

from typing import Literal, get_args

import jax
from jaxtyping import Array, Bool, Float, Int

from avatar_kernels import names
from avatar_kernels.reference_attention import (
    block_sizes,
    implementations,
    reference,
    vjp,
)
from avatar_kernels.reference_attention.reference import LocalWindow

Implementation = Literal[
    "xla",
    "mosaic_tpu",
    "mosaic_tpu_interpreted",
    "mosaic_gpu",
    "triton",
    "triton_interpreted",
]
HEAD_DIMS = (64, 128)


def target_attention(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    reference_k: Float[Array, "B R N K"],
    reference_v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B S"],
    reference_valid: Bool[Array, "B R"],
    window: LocalWindow | None = None,
    return_lse: bool = False,
    implementation: Implementation | None = None,
    sizes: block_sizes.KernelSizes | None = None,
) -> Float[Array, "B T N K"] | tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Let generated and still rows attend to their own rows and to the reference's.

    Two sources of keys and values, one softmax, no concatenation (Avatar V 2.1, 4.3). A
    row that sees nothing gives zeros. Cost: T x (S + R), of both only blocks that hold
    valid rows; with a window of the own rows only those near.

    Args:
      q: queries, after norm and rotary.
      k: own keys, likewise.
      v: own values.
      reference_k: cached reference keys, after norm and rotary; R may be 0.
      reference_v: cached reference values.
      valid: own rows that may be seen.
      reference_valid: reference rows that may be seen.
      window: which own rows are near enough; needs T = S. None: all.
      return_lse: also return the log-sum-exp of each query and head, in float32.
      implementation: "xla" is plain jnp; "mosaic_tpu", "mosaic_gpu" (Hopper) and
        "triton" (any GPU) are kernels; what ends in "_interpreted" runs kernels on a
        CPU, slowly, for tests. None picks the best for the device.
      sizes: blocks of a kernel; None: those of the table for the device.

    Raises:
      ValueError: where heads, widths or lengths disagree.
      NotImplementedError: for an implementation or a head_dim that there is none for.
    """
    _check_pairs("k and v", k, v)
    _check_pairs("reference_k and reference_v", reference_k, reference_v)
    _check_heads(q, k)
    _check_heads(q, reference_k)
    if window is not None and q.shape[1] != k.shape[1]:
        raise ValueError(f"A window needs T = S; got {q.shape[1]} and {k.shape[1]}.")
    name = resolve(implementation, q)
    _check_dtypes(q, k, v, reference_k, reference_v)
    if name == "xla":
        out, lse = reference.target_attention(
            q,
            k,
            v,
            reference_k,
            reference_v,
            valid=valid,
            reference_valid=reference_valid,
            window=window,
        )
    else:
        out, lse = vjp.attend(
            _plan(name, q, sizes, window),
            vjp.Rows(q, k, v, reference_k, reference_v),
            vjp.Marks(valid, reference_valid),
        )
    return (out, lse) if return_lse else out


def segment_attention(
    q: Float[Array, "B R N K"],
    k: Float[Array, "B R N K"],
    v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B R"],
    segment_ids: Int[Array, "B R"],
    return_lse: bool = False,
    implementation: Implementation | None = None,
    sizes: block_sizes.KernelSizes | None = None,
) -> Float[Array, "B R N K"] | tuple[Float[Array, "B R N K"], Float[Array, "B R N"]]:
    """Let reference rows attend to valid rows of their own segment (block-diagonal).

    Args:
      q: queries, after norm and rotary.
      k: keys, likewise.
      v: values.
      valid: rows that may be seen; the others give zeros where they see nothing.
      segment_ids: rows attend to rows with the same number. Kernels skip what is not of
        the segment where the rows of each segment lie together.
      return_lse: also return the log-sum-exp of each query and head, in float32.
      implementation: see `target_attention`.
      sizes: see `target_attention`.

    Raises:
      ValueError: where heads, widths or lengths disagree.
      NotImplementedError: for an implementation or a head_dim that there is none for.
    """
    _check_pairs("q and k", q, k)
    _check_pairs("k and v", k, v)
    name = resolve(implementation, q)
    _check_dtypes(q, k, v)
    if name == "xla":
        out, lse = reference.segment_attention(
            q, k, v, valid=valid, segment_ids=segment_ids
        )
    else:
        out, lse = vjp.attend(
            _plan(name, q, sizes),
            vjp.Rows(q, k, v),
            vjp.Marks(valid, None, segment_ids),
        )
    return (out, lse) if return_lse else out


def resolve(
    implementation: Implementation | None,
    q: Float[Array, "B T N K"] | jax.ShapeDtypeStruct,
) -> Implementation:
    """Return the implementation that will run; None: the best for the device.

    Heads of a width that kernels are not made for go through XLA.

    Raises:
      NotImplementedError: there is none of that name, or none for this head_dim.
    """
    width = q.shape[-1]
    if implementation is None:
        platform, kind = block_sizes.find_device()
        if width not in HEAD_DIMS or not block_sizes.has_kernels(platform, kind):
            return "xla"
        # Choice: Triton on Hopper too, until "mosaic_gpu" has been timed on a device.
        return {"tpu": "mosaic_tpu", "gpu": "triton", "cuda": "triton"}.get(
            platform, "xla"
        )
    names.check_name(implementation, get_args(Implementation))
    if implementation != "xla" and width not in HEAD_DIMS:
        raise NotImplementedError(
            f"head_dim={width} has no kernel {implementation!r}; expected one of "
            f"{HEAD_DIMS}, or implementation='xla'."
        )
    return implementation


def _plan(
    name: Implementation,
    q: Float[Array, "B T N K"],
    sizes: block_sizes.KernelSizes | None,
    window: LocalWindow | None = None,
) -> vjp.Plan:
    _, kind = block_sizes.find_device()
    if sizes is None:
        sizes = block_sizes.find_sizes(name, kind, q.shape[-1])
    return vjp.Plan(implementations.find(name), sizes, window)


def _check_pairs(
    names: str, a: Float[Array, "B S N K"], b: Float[Array, "B S2 N2 K2"]
) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{names} must have one shape; got {a.shape} and {b.shape}.")


def _check_heads(q: Float[Array, "B T N K"], k: Float[Array, "B2 S N2 K2"]) -> None:
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(
            "Queries and keys must share batch, heads and head_dim; "
            f"got {q.shape} and {k.shape}."
        )


def _check_dtypes(*rows: Float[Array, "B _ N K"]) -> None:
    kinds = sorted({str(a.dtype) for a in rows})
    if len(kinds) > 1:
        raise ValueError(f"Rows must share one dtype; got {', '.join(kinds)}.")
