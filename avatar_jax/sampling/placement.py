"""Where sampling keeps things on several devices.

The rows of one video lie spread over mesh axis `context`; the batch is small, so `fsdp`
would idle. Parameters are therefore spread over both together, and every layer gathers
its own inside the scan over layers: no device ever holds them all. Reference caches are
divided as attention reads them, by heads, or by rows where it goes round a ring. What
is small (latents, prompts, speech) is on every device.

  mesh = placement.make_mesh(devices)
  params = jax.device_put(params, placement.parameters(params, mesh))
  with placement.entered(mesh): ...
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from avatar_jax import sharding
from avatar_jax.nn import layouts
from avatar_jax.types import ReferenceCache

Tree = Any


def make_mesh(
    devices: Sequence[jax.Device], config: sharding.MeshConfig | None = None
) -> Mesh:
    """Lay rows over all devices, or as a config says."""
    if config is None:
        config = sharding.MeshConfig(data=1, context=len(devices))
    return sharding.make_mesh(config, devices)


@contextlib.contextmanager
def entered(mesh: Mesh) -> Iterator[None]:
    """Set the mesh and the rules by which models lay their rows on it."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_RULES):
        yield


def parameters(params: Tree, mesh: Mesh) -> Tree:
    """Return the sharding of every parameter."""
    return sharding.parameter_shardings(params, mesh, over=("fsdp", "context"))


def whole(tree: Tree, mesh: Mesh) -> Tree:
    """Return shardings that keep everything on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def cache(reference: ReferenceCache, mesh: Mesh) -> ReferenceCache:
    """Return the shardings of a reference cache, as target attention reads it."""
    with jax.set_mesh(mesh):
        spec = _cache_spec(reference)
    rows = NamedSharding(mesh, spec)
    return whole(reference, mesh).replace(k=rows, v=rows)


def constrain_cache(reference: ReferenceCache) -> ReferenceCache:
    """Leave a cache as target attention reads it on the mesh that is set, if any."""
    if jax.sharding.get_abstract_mesh().empty:
        return reference
    spec = _cache_spec(reference)
    return reference.replace(
        k=jax.lax.with_sharding_constraint(reference.k, spec),
        v=jax.lax.with_sharding_constraint(reference.v, spec),
    )


def _cache_spec(reference: ReferenceCache) -> PartitionSpec:
    _, batch, rows, heads, width = reference.k.shape
    q = jax.ShapeDtypeStruct((batch, rows, heads, width), reference.k.dtype)
    layout = layouts.find_layout(q, None)
    if layout is None:
        return PartitionSpec()
    spec = layout.rows() if layout.ring > 1 else layout.by_head()
    return PartitionSpec(None, *spec)  # layers first


def picture_rows(tree: Tree, mesh: Mesh) -> Tree:
    """Return shardings of `B F Y X C` arrays: by rows Y where devices divide them."""
    devices = mesh.shape[layouts.CONTEXT]
    divided = PartitionSpec(None, None, layouts.CONTEXT)

    def find(leaf: Any) -> NamedSharding:
        fits = len(leaf.shape) == 5 and leaf.shape[2] % devices == 0
        return NamedSharding(mesh, divided if fits else PartitionSpec())

    return jax.tree.map(find, tree)
