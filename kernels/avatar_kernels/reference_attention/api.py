"""The public functions of Sparse Reference Attention: check shapes, pick the code."""

from typing import Literal

from jaxtyping import Array, Bool, Float, Int

from avatar_kernels.reference_attention import reference

Implementation = Literal["xla"]


def target_attention(
    q: Float[Array, "B T N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    reference_k: Float[Array, "B R N K"],
    reference_v: Float[Array, "B R N K"],
    *,
    valid: Bool[Array, "B S"],
    reference_valid: Bool[Array, "B R"],
    return_lse: bool = False,
    implementation: Implementation | None = None,
) -> Float[Array, "B T N K"] | tuple[Float[Array, "B T N K"], Float[Array, "B T N"]]:
    """Let generated and still rows attend to their own rows and to the reference's.

    Two sources of keys and values, one softmax, no concatenation (Avatar V 2.1, 4.3). A
    row that sees nothing gives zeros. Cost: T x (S + R).

    Args:
      q: queries, after norm and rotary.
      k: own keys, likewise.
      v: own values.
      reference_k: cached reference keys, after norm and rotary; R may be 0.
      reference_v: cached reference values.
      valid: own rows that may be seen.
      reference_valid: reference rows that may be seen.
      return_lse: also return the log-sum-exp of each query and head, in float32.
      implementation: "xla" is plain jnp; None picks the best for the device.

    Raises:
      ValueError: where heads, widths or lengths disagree.
      NotImplementedError: for an implementation that this build does not have.
    """
    _check_pairs("k and v", k, v)
    _check_pairs("reference_k and reference_v", reference_k, reference_v)
    _check_heads(q, k)
    _check_heads(q, reference_k)
    _check_implementation(implementation)
    out, lse = reference.target_attention(
        q,
        k,
        v,
        reference_k,
        reference_v,
        valid=valid,
        reference_valid=reference_valid,
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
) -> Float[Array, "B R N K"] | tuple[Float[Array, "B R N K"], Float[Array, "B R N"]]:
    """Let reference rows attend to valid rows of their own segment (block-diagonal).

    Args:
      q: queries, after norm and rotary.
      k: keys, likewise.
      v: values.
      valid: rows that may be seen; the others give zeros where they see nothing.
      segment_ids: rows attend to rows with the same number.
      return_lse: also return the log-sum-exp of each query and head, in float32.
      implementation: "xla" is plain jnp; None picks the best for the device.

    Raises:
      ValueError: where heads, widths or lengths disagree.
      NotImplementedError: for an implementation that this build does not have.
    """
    _check_pairs("q and k", q, k)
    _check_pairs("k and v", k, v)
    _check_implementation(implementation)
    out, lse = reference.segment_attention(
        q, k, v, valid=valid, segment_ids=segment_ids
    )
    return (out, lse) if return_lse else out


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


def _check_implementation(implementation: Implementation | None) -> None:
    if implementation not in (None, "xla"):
        raise NotImplementedError(
            f"implementation={implementation!r} is not in this build; use 'xla'."
        )
