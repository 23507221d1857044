"""Our side of `benchmarks.versus_torch`: the same step, and steps with a reference.

  python -m benchmarks.versus_side_jax '{"result": "hardware.json"}'
  python -m benchmarks.versus_side_jax '{"result": ..., "case": ..., ...}'

It runs in a process of its own, as the torch side does. The first form says what there
is to run on; the second runs a step with one implementation of attention, or with
`lengths` steps of TAVR's layout with and without a reference cache.
"""

import functools
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from einops import rearrange
from flax import traverse_util
from jaxtyping import Array, Float

from avatar_jax.types import Conditions
from avatar_jax.weights import files, leaves, networks
from benchmarks import versus_cases, versus_programs
from benchmarks.versus_cases import Case

WARM_UP = 2  # calls after the first that are not counted
Step = Callable[[Array], Array]  # donates what it is given


def main(argv: list[str]) -> None:
    """Do what a request asks and write the answer where it says."""
    request = json.loads(argv[0])
    if "lengths" in request:
        answer = measure_references(request)
    else:
        answer = measure(request) if "case" in request else describe()
    Path(request["result"]).write_text(json.dumps(answer))


def describe() -> dict:
    """Say what there is to run on."""
    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    return {
        "platform": device.platform,
        "device": device.device_kind if on_gpu else platform.processor() or "cpu",
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }


def measure(request: dict) -> dict:
    """Time steps; each one's output is the next one's input, in the same memory.

    Args:
      request: the name of the `case`, the folder `weights`, the file `inputs`, the file
        for the first `output`; `implementation` of attention, `repeats`.
    """
    case = versus_cases.find(request["case"])
    run = versus_programs.make_step(case.cfg, request["implementation"])
    params = load_weights(Path(request["weights"]), case)
    inputs = np.load(request["inputs"])
    noise = jnp.asarray(rearrange(inputs["noise"], "B C F H W -> B F H W C"))
    text = jnp.asarray(inputs["text"])
    t = jnp.full((1,), versus_cases.TIMESTEP / 1000)

    def step(latents: Float[Array, "B F H W C"]) -> Float[Array, "B F H W C"]:
        return jax.block_until_ready(run(latents, params, t, Conditions(text=text)))

    start = time.perf_counter()
    latents = step(noise)
    first = time.perf_counter() - start
    np.save(request["output"], rearrange(np.asarray(latents), "B F H W C->B C F H W"))
    for _ in range(WARM_UP):
        latents = step(latents)
    seconds = _time([step], [latents], request["repeats"])[0]
    return {"first": first, "seconds": seconds, "peak": _peak()}


def load_weights(folder: Path, case: Case) -> dict:
    """Read a checkpoint of diffusers as a converted one would be, onto the device."""
    tensors = files.open_checkpoint(folder).tensors
    network = networks.describe("wan", case.cfg, tensors)
    leaves.check_tensors(network, tensors, folder)
    flat = {
        leaf.path: jnp.asarray(leaf.read(0, leaf.shape[0]))
        for leaf in leaves.list_leaves(network, tensors, case.cfg.dtype)
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def measure_references(request: dict) -> dict:
    """Time steps that read a cache and steps that make it, in turns, for each length.

    Args:
      request: as of `measure`, without weights: these are drawn here.
    """
    case = versus_cases.find(request["case"])
    cfg, name = case.reference_cfg, request["implementation"]
    programs = (
        versus_programs.make_step(cfg, name),
        versus_programs.make_cache(cfg, name),
    )
    params = _draw(versus_programs.describe_parameters(cfg))
    rows = []
    for length in request["lengths"]:
        try:
            row = _measure_reference(case, length, programs, params, request["repeats"])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row = {"refused": "does not fit the memory of this device"}
        rows.append({"length": length, **row})
    return {"rows": rows, "peak": _peak()}


def _measure_reference(
    case: Case, length: int, programs: tuple, params: dict, repeats: int
) -> dict:
    run, make_cache = programs
    conditions = _draw(versus_programs.describe_conditions(case, length))
    make = functools.partial(
        make_cache, params, conditions.reference, conditions.null_text
    )
    jax.block_until_ready(make())  # compiles
    start = time.perf_counter()
    cache = jax.block_until_ready(make())
    once = time.perf_counter() - start
    t = jnp.full((1,), 0.5)

    def step(told: Conditions, latents: Array) -> Array:
        return jax.block_until_ready(run(latents, params, t, told))

    steps = [
        functools.partial(step, conditions.replace(reference=cache)),
        functools.partial(step, conditions),
    ]
    latents = [jax.random.normal(jax.random.key(1), case.latents) for _ in steps]
    for _ in range(1 + WARM_UP):
        latents = [one(x) for one, x in zip(steps, latents, strict=True)]
    cached, uncached = _time(steps, latents, repeats)
    return {"cached": cached, "uncached": uncached, "cache_once": once}


def _time(steps: list[Step], latents: list[Array], repeats: int) -> list[list[float]]:
    """Run the steps in turns, so that a slow minute meets all of them; seconds."""
    samples: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            latents[i] = step(latents[i])
            samples[i].append(time.perf_counter() - start)
    return samples


def _draw(described: Any) -> Any:
    """Fill described arrays: with small normal values, or with true."""

    def fill(leaf: jax.ShapeDtypeStruct | Array) -> Array:
        if isinstance(leaf, jax.Array):
            return leaf
        if leaf.dtype == jnp.bool_:
            return jnp.ones(leaf.shape, bool)
        scale = jnp.asarray(0.02, leaf.dtype)
        return scale * jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)

    return jax.tree.map(fill, described)


def _peak() -> int | None:
    """Return the most bytes that were in use on the device; None: it does not say."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


if __name__ == "__main__":
    main(sys.argv[1:])
