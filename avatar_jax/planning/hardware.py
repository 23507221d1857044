"""Devices to compile for that are not here, and how much memory a program may use."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

import jax
from avatar_kernels import cuda_targets, topologies

from avatar_jax.types import InputError

GIB = 2**30
TPU_KINDS = ("v5e", "v5p", "v6e", "tpu7x")
# Bytes of one device, and what the TPU compiler itself grants a program ("exceeds
# available HBM (31.24G)"): the runtime keeps the rest. Of v5p it would grant 95.73 GiB,
# more than is sold; a GiB less than that is taken. A chip of tpu7x is two devices.
TPU_MEMORY = {
    "v5e": (16 * GIB, int(15.75 * GIB)),
    "v5p": (95 * GIB, 94 * GIB),
    "v6e": (32 * GIB, int(31.24 * GIB)),
    "tpu7x": (96 * GIB, int(94.74 * GIB)),
}
# Of GPUs jax takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75
GPU_MEMORY = {"a100": 80 * 10**9, "h100": 80 * 10**9, "h200": 141 * 10**9}
EXAMPLES = "v5e:2x4, v5p:4x4x8, v6e:2x4, tpu7x:2x2x1, h100:8, h200:1"


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a plan is made for.

    Attributes:
      topology: its name.
      devices: as jax counts them; not of this machine.
      memory: bytes of one device.
      usable: bytes of it that a program may have.
      devices_per_chip: two of tpu7x.
    """

    topology: str
    devices: tuple[jax.Device, ...]
    memory: int
    usable: int
    devices_per_chip: int = 1

    @property
    def platform(self) -> str:
        """Return "tpu" or "gpu"."""
        return self.devices[0].platform


def find(topology: str) -> Hardware:
    """Return the devices of a topology: TPUs as "v5p:4x4x8", GPUs as "h100:8".

    Raises:
      InputError: no such topology, or its compiler is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind in TPU_KINDS and re.fullmatch(r"\d+(x\d+){1,2}", shape):
        return _find_tpu(topology, kind)
    if kind in GPU_MEMORY and re.fullmatch(r"[1-9]\d*", shape):
        return _find_gpu(topology, kind, int(shape))
    raise InputError(f"unknown topology {topology!r}; use one like {EXAMPLES}.")


def _find_tpu(topology: str, kind: str) -> Hardware:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"{topology} needs the TPU compiler, which is not installed; pip install "
            "libtpu (Linux on x86-64)."
        )
    try:
        devices = topologies.describe(topology)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"the TPU compiler refuses topology {topology!r} ({reason}); use one like "
            f"{EXAMPLES}."
        ) from None
    chips = {tuple(device.coords) for device in devices}
    share = len(devices) // len(chips)
    return Hardware(topology, tuple(devices), *TPU_MEMORY[kind], share)


def _find_gpu(topology: str, kind: str, count: int) -> Hardware:
    missing = InputError(
        f"{topology} needs the CUDA compiler, which is not installed here; use an "
        "environment with `pip install -e '.[cuda]'`, as launch/compile_cuda.sh makes "
        "in .venv-cuda."
    )
    if importlib.util.find_spec("jax_plugins") is None:
        raise missing
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # no driver answers
    _use_own_tools()
    try:
        devices = cuda_targets.devices(kind, count)
    except (NotImplementedError, RuntimeError):
        raise missing from None
    memory = GPU_MEMORY[kind]
    return Hardware(topology, tuple(devices), memory, int(GPU_SHARE * memory))


def _use_own_tools() -> None:
    """Let XLA find ptxas and nvlink of the CUDA wheels."""
    nvidia = importlib.util.find_spec("nvidia")
    for root in (nvidia and nvidia.submodule_search_locations) or ():
        for tools in Path(root).glob("cu*/bin"):
            os.environ["PATH"] = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
