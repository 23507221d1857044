"""Give every test eight CPU devices and strict shapes, and find the sample media."""

import os
from pathlib import Path

import jax
import pytest

# On a device: AVATAR_JAX_TEST_PLATFORM=cuda (or tpu) python -m pytest tests/kernels
jax.config.update("jax_platforms", os.environ.get("AVATAR_JAX_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
# Programs for devices that are only described cannot be read back from a cache.
jax.config.update("jax_compilation_cache_dir", None)
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(
    os.environ.get("AVATAR_JAX_SHARED")
    or Path(__file__).resolve().parents[2] / "shared"
)
SAMPLES = SHARED / "samples"


@pytest.fixture
def shared() -> Path:
    """Return the folder of real sample media, which is not part of the repository."""
    if not SAMPLES.is_dir():
        pytest.skip(f"needs the real sample media in {SAMPLES}, which is absent here")
    return SAMPLES
