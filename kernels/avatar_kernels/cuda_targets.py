"""Compile for NVIDIA GPUs where there is none: the devices that XLA is told of.

It takes the CUDA build of jax (`jax[cuda13]`), its libraries on `LD_LIBRARY_PATH`, and
`JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1`, since no driver answers.
"""

from importlib import resources

import jax
from jax.experimental import topologies


def names() -> list[str]:
    """Return the GPUs that are described in `targets/`."""
    texts = resources.files("avatar_kernels").joinpath("targets").iterdir()
    return sorted(t.name.removesuffix(".txt") for t in texts if t.name.endswith(".txt"))


def devices(name: str, count: int = 1) -> list[jax.Device]:
    """Return so many GPUs of a kind, to compile for but not to run on.

    Raises:
      ValueError: the kind is not described.
    """
    if name not in names():
        raise ValueError(f"no target {name!r}; expected one of {names()}.")
    text = resources.files("avatar_kernels").joinpath("targets", f"{name}.txt")
    description = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{count}", target_config=text.read_text()
    )
    return description.devices
