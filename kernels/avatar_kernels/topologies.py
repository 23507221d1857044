"""The real TPU compiler on a machine without a TPU: devices to compile for.

`libtpu` holds the compiler; it needs to be told that no TPU is to be looked for. Call
`describe` before anything else has loaded it.
"""

import os

import jax
from jax.experimental import topologies

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compilers do not share a device
}
# The smallest topology of each generation.
SMALLEST = {
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}


def describe(topology: str) -> list[jax.Device]:
    """Return the devices of a TPU topology such as "v5p:4x4x8"; none of them is here.

    Raises:
      RuntimeError: `libtpu` is not installed, or does not know the topology.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
