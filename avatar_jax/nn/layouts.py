"""How the rows and heads of an attention lie on the mesh that is set."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from avatar_kernels import reference_attention
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

BATCH, CONTEXT, TENSOR = ("data", "fsdp"), "context", "tensor"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one attention lies on the mesh.

    Attributes:
      batch: axes that the batch is divided over, or None.
      heads: axis that heads are divided over, or None.
      tensor: devices that heads are divided over.
      context: devices that rows are divided over.
      ulysses: of these, devices that trade rows for heads.
    """

    batch: tuple[str, ...] | None
    heads: str | None
    tensor: int
    context: int
    ulysses: int

    @property
    def ring(self) -> int:
        """Devices that keys and values go round."""
        return self.context // self.ulysses

    @property
    def groups(self) -> list[list[int]] | None:
        """Devices of `context` that trade with each other; None: all with all."""
        u = self.ulysses
        if u == self.context:
            return None
        return [list(range(start, start + u)) for start in range(0, self.context, u)]

    def rows(self) -> PartitionSpec:
        """Return the spec of `B T N K` whose rows are divided."""
        return PartitionSpec(self.batch, CONTEXT, self.heads, None)

    def by_head(self) -> PartitionSpec:
        """Return the spec of `B R N K` whose heads are divided, rows whole."""
        axes = (self.heads, CONTEXT) if self.heads else CONTEXT
        return PartitionSpec(self.batch, None, axes, None)

    def marks(self) -> PartitionSpec:
        """Return the spec of `B T` that every device of `context` knows."""
        return PartitionSpec(self.batch, None)


def find_layout(
    q: Float[Array, "B T N K"] | jax.ShapeDtypeStruct,
    implementation: reference_attention.Implementation | None,
) -> Layout | None:
    """Return how queries lie on the mesh that is set; None: nothing is to be done.

    Kernels are opaque to the partitioner, so that any mesh of several devices needs a
    layout; plain XLA is left to it unless rows are divided.

    Raises:
      ValueError: a kernel or divided rows, without all axes of `sharding.AXES`.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if math.prod(sizes.values()) == 1:
        return None
    name = reference_attention.resolve(implementation, q)
    if sizes.get(CONTEXT, 1) == 1 and name == "xla":
        return None
    missing = {*BATCH, CONTEXT, TENSOR} - set(sizes)
    if missing:
        raise ValueError(
            f"{name!r} on several devices needs mesh axes data, fsdp, context and "
            f"tensor; missing: {', '.join(sorted(missing))}. Make the mesh with "
            "`sharding.make_mesh`."
        )
    batch, _, heads, _ = q.shape
    divided = batch % math.prod(sizes[axis] for axis in BATCH) == 0
    tensor = sizes[TENSOR] if heads % sizes[TENSOR] == 0 else 1
    return Layout(
        batch=BATCH if divided else None,
        heads=TENSOR if heads % sizes[TENSOR] == 0 else None,
        tensor=tensor,
        context=sizes[CONTEXT],
        ulysses=math.gcd(heads // tensor, sizes[CONTEXT]),
    )


def pad(a: Array, axis: int, multiple: int) -> Array:
    """Fill up with zeros: rows that are not valid, heads that nobody reads."""
    extra = -a.shape[axis] % multiple
    return jnp.pad(a, [(0, extra if i == axis else 0) for i in range(a.ndim)])
