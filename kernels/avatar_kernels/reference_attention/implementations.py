"""The kernels by name; those that end in "_interpreted" run on a CPU, for tests.

What belongs to one platform is imported when it is asked for.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from avatar_kernels.reference_attention.sources import Source
from avatar_kernels.reference_attention.vjp import Kernels


@functools.cache
def find(name: str) -> Kernels:
    """Return the kernels of an implementation; there is none for "xla"."""
    platform = name.removesuffix("_interpreted")
    interpret = platform != name
    if platform == "mosaic_tpu":
        from avatar_kernels.reference_attention import pallas_tpu, pallas_tpu_vjp

        kernels = Kernels(
            pallas_tpu.forward, pallas_tpu_vjp.backward_q, pallas_tpu_vjp.backward_kv
        )
        return Kernels(*map(_interpret_tpu, kernels)) if interpret else kernels
    if platform == "triton":
        from avatar_kernels.reference_attention import pallas_triton, pallas_triton_vjp

        return Kernels(
            *(
                functools.partial(kernel, interpret=interpret)
                for kernel in (
                    pallas_triton.forward,
                    pallas_triton_vjp.backward_q,
                    pallas_triton_vjp.backward_kv,
                )
            )
        )
    from avatar_kernels.reference_attention import pallas_hopper, pallas_hopper_vjp

    return in_eights(
        Kernels(
            pallas_hopper.forward,
            pallas_hopper_vjp.backward_q,
            pallas_hopper_vjp.backward_kv,
        )
    )


def in_eights(kernels: Kernels) -> Kernels:
    """Let kernels whose lengths are multiples of 8 (TMA) take any, by filling up."""

    def fill(a: Array, axis: int = 1) -> Array:
        extra = -a.shape[axis] % 8
        return jnp.pad(a, [(0, extra if i == axis else 0) for i in range(a.ndim)])

    def fill_source(source: Source) -> Source:
        return source._replace(
            k=fill(source.k),
            v=fill(source.v),
            key_meta=fill(source.key_meta, 2),
            query_meta=fill(source.query_meta, 2),
        )

    def forward(q, sources, sizes):
        out, lse = kernels.forward(fill(q), list(map(fill_source, sources)), sizes)
        return out[:, : q.shape[1]], lse[:, : q.shape[1]]

    def backward_q(q, sources, *rows_and_sizes):
        *rows, sizes = rows_and_sizes
        filled = list(map(fill_source, sources))
        dq, delta = kernels.backward_q(fill(q), filled, *map(fill, rows), sizes)
        return dq[:, : q.shape[1]], delta[:, : q.shape[1]]

    def backward_kv(q, source, *rows_and_sizes):
        *rows, sizes = rows_and_sizes
        filled = fill_source(source)
        grads = kernels.backward_kv(fill(q), filled, *map(fill, rows), sizes)
        return tuple(d[:, : source.k.shape[1]] for d in grads)

    return Kernels(forward, backward_q, backward_kv)


def _interpret_tpu(kernel: Callable) -> Callable:
    from avatar_kernels import tpu

    @functools.wraps(kernel)
    def run(*args):
        with tpu.interpret_tpu():
            return kernel(*args)

    return run
