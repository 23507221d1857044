"""How many queries and keys a kernel takes at a time, by device."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Blocks of one kernel.

    Attributes:
      q: queries per block; TPU: a multiple of 128. Hopper: 128 or 192 for `forward` and
        `backward_q` (rows of two or three warpgroups).
      kv: keys per block that is loaded; a multiple of `kv_compute`. Hopper: 128 or 192
        for `backward_kv`.
      kv_compute: keys whose scores are held at a time (TPU), a multiple of 128.
      vmem_limit_bytes: what the kernel may use of VMEM (TPU).
    """

    q: int = 1024
    kv: int = 1024
    kv_compute: int = 512
    vmem_limit_bytes: int = 48 * 2**20

    def __post_init__(self) -> None:
        if min(self.q, self.kv, self.kv_compute) < 1 or self.kv % self.kv_compute:
            raise ValueError(
                f"expected blocks of 1 row or more and kv a multiple of kv_compute, "
                f"came q={self.q}, kv={self.kv} and kv_compute={self.kv_compute}."
            )


@dataclasses.dataclass(frozen=True)
class KernelSizes:
    """Blocks of all kernels of one implementation."""

    forward: BlockSizes = BlockSizes()
    backward_q: BlockSizes = BlockSizes()
    backward_kv: BlockSizes = BlockSizes()


def same(*sizes: int) -> KernelSizes:
    """Give all kernels the same blocks."""
    blocks = BlockSizes(*sizes)
    return KernelSizes(blocks, blocks, blocks)


# The safe default of each implementation: it compiles for every device and head_dim.
TRITON = KernelSizes(
    BlockSizes(128, 64, 64), BlockSizes(128, 32, 32), BlockSizes(32, 128, 128)
)
DEFAULTS = {
    "mosaic_tpu": KernelSizes(),
    "mosaic_tpu_interpreted": same(128, 128, 128),
    "mosaic_gpu": KernelSizes(
        BlockSizes(128, 128, 128), BlockSizes(128, 64, 64), BlockSizes(64, 128, 128)
    ),
    "triton": TRITON,
    "triton_interpreted": TRITON,
}


def find_sizes(implementation: str, device_kind: str, head_dim: int) -> KernelSizes:
    """Return the blocks of a kernel: those of the table, or the safe default."""
    table = TABLE.get(implementation, {})
    return table.get((device_kind, head_dim), DEFAULTS[implementation])


# Compute capability of GPUs for which kernels are made: bfloat16 on tensor cores.
LEAST_CAPABILITY = 8.0
# By the start of their names, "NVIDIA" aside, for GPUs that are only described.
TOO_OLD = ("TITAN", "Tesla", "Quadro", "GeForce GTX", "GeForce RTX 20", "T4", "V100")


def has_kernels(platform: str, kind: str) -> bool:
    """Say whether kernels are made for a device; GPUs before sm_80 have none."""
    if platform not in ("gpu", "cuda"):
        return True
    present = jax.devices()[0]
    capability = str(getattr(present, "compute_capability", ""))  # of AMD "gfx..."
    if present.device_kind == kind and capability.replace(".", "").isdigit():
        return float(capability) >= LEAST_CAPABILITY
    return not kind.removeprefix("NVIDIA ").startswith(TOO_OLD)


# (device kind, head_dim), made by `python -m benchmarks.attention search`.
TABLE: dict[str, dict[tuple[str, int], KernelSizes]] = {}


def find_device() -> tuple[str, str]:
    """Return platform and kind of the device that a program is being made for.

    That is the device of the mesh that is set (`jax.set_mesh`), which may be one that
    this machine has not, or else this machine's.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None:
        device = jax.devices()[0]
    return device.platform, device.device_kind
