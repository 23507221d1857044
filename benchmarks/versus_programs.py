"""Our programs of `benchmarks.versus_torch`, to run or to compile for an absent GPU."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from avatar_kernels import cuda_targets
from avatar_kernels.reference_attention import Implementation
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from avatar_jax.models import dit
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import (
    FRAMES_PER_LATENT,
    Conditions,
    Reference,
    ReferenceCache,
    VideoMotion,
    count_frames,
)
from avatar_jax.weights import leaves
from benchmarks.versus_cases import Case

SEGMENT = 12  # latents of a reference segment: 48 frames
# Without a device XLA cannot try its own tilings of products and may keep one that does
# not fit; cuBLAS has them all. On a device it tries them, and what we run is untouched.
OPTIONS = {"xla_gpu_enable_triton_gemm": False}


class Report(NamedTuple):
    """What the compiler says of one program; bytes."""

    name: str
    seconds: float
    arguments: int
    temporary: int
    total: int  # held while it runs


def make_step(cfg: DiTConfig, implementation: Implementation) -> Callable:
    """Return the jitted step: latents (donated), params, t, conditions -> velocity."""
    model = dit.AvatarDiT(dataclasses.replace(cfg, attention=implementation))

    def step(
        latents: Float[Array, "B F H W C"],
        params: dict,
        t: Float[Array, " B"],
        conditions: Conditions,
    ) -> Float[Array, "B F H W C"]:
        noisy = VideoMotion(latents)
        return model.apply({"params": params}, noisy, t, conditions).latents

    return jax.jit(step, donate_argnums=0)


def make_cache(cfg: DiTConfig, implementation: Implementation) -> Callable:
    """Return the jitted reference pass: params, reference, null text -> cache."""
    model = dit.AvatarDiT(dataclasses.replace(cfg, attention=implementation))

    def run(
        params: dict, reference: Reference, null_text: Float[Array, "B L M"]
    ) -> ReferenceCache:
        return model.apply(
            {"params": params}, reference, null_text, method="cache_reference"
        )

    return jax.jit(run)


def describe_parameters(cfg: DiTConfig) -> dict:
    """Describe parameters as a converted checkpoint of that precision holds them."""
    model, side = dit.AvatarDiT(cfg), cfg.patch
    noisy = VideoMotion(_array(1, 1, side, side, cfg.channels))
    key = jax.eval_shape(lambda: jax.random.key(0))
    tree = jax.eval_shape(model.init, key, noisy, _array(1), Conditions())
    flat = {
        path: _array(*leaf.shape, dtype=leaves.choose_dtype(path, (), cfg.dtype))
        for path, leaf in traverse_util.flatten_dict(tree["params"], sep="/").items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def describe_conditions(case: Case, length: int) -> Conditions:
    """Describe all that TAVR's layout is told, with a reference of so many latents."""
    cfg, (batch, frames, height, width, channels) = case.reference_cfg, case.latents
    text = _array(batch, case.text_rows, cfg.text_width)
    grid = (height // cfg.patch, width // cfg.patch)
    heard = FRAMES_PER_LATENT * length
    return Conditions(
        text=text,
        null_text=text,
        audio=_array(batch, count_frames(frames), cfg.audio_width),
        still=_array(batch, 1, height, width, channels),
        reference=Reference(
            latents=_array(batch, length, height, width, channels),
            valid=_array(batch, length, *grid, dtype=jnp.bool_),
            segment_ids=jnp.arange(length, dtype=jnp.int32)[None] // SEGMENT,
            audio=_array(batch, heard, cfg.reference_audio_width),
        ),
    )


def compile_for(
    device: str, case: Case, implementation: Implementation, length: int
) -> Iterator[Report]:
    """Compile the step of Wan, then those with a cached and an uncached reference."""
    wan, tavr = case.cfg, case.reference_cfg
    text = _array(1, case.text_rows, wan.text_width)
    told = describe_conditions(case, length)
    params, fewer = describe_parameters(tavr), describe_parameters(wan)
    make = make_cache(tavr, implementation)
    plain, step = make_step(wan, implementation), make_step(tavr, implementation)
    (chip,) = cuda_targets.devices(device)
    mesh = jax.make_mesh((1,), ("chip",), devices=[chip])
    latents, t = _array(*case.latents), _array(1)
    with jax.set_mesh(mesh):
        cache = jax.eval_shape(make, params, told.reference, told.null_text)
        runs = {
            "step": (plain, latents, fewer, t, Conditions(text)),
            f"cache, R = {length}": (make, params, told.reference, told.null_text),
            f"cached, R = {length}": (
                step,
                latents,
                params,
                t,
                told.replace(reference=cache),
            ),
            f"uncached, R = {length}": (step, latents, params, t, told),
        }
        for name, (run, *arguments) in runs.items():
            yield _compile(name, run, _place(arguments, mesh))


def _compile(name: str, run: Any, arguments: list) -> Report:
    start = time.perf_counter()
    compiled = run.lower(*arguments).compile(compiler_options=OPTIONS)
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return Report(
        name,
        time.perf_counter() - start,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        held + memory.generated_code_size_in_bytes,
    )


def _place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
    )


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
