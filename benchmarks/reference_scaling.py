"""Time one denoising step against the length of the reference.

  python -m benchmarks.reference_scaling [--layers 2 --width 128 --repeats 9]

Three rows, medians of interleaved repeats in one run: `cached` reads keys and values
made once per request; `uncached` makes them in every step; `dense` lets all rows attend
to all (one joint sequence), as concatenating the reference to the video would. Then the
fit a + b R + c R^2 of the cached row, and its quadratic part at the longest R; a
negative part says that it grows slower than linearly.
"""

import argparse
import dataclasses
import functools
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models import dit, sizes
from avatar_jax.types import Conditions, Reference, VideoMotion

LENGTHS = (5, 12, 24, 48, 96)  # reference latents
SEGMENT = 12  # latents of a reference segment: 48 frames
GENERATED, SIDE = 32, 16  # latents, latent rows and columns: 2,048 generated tokens


def main() -> None:
    """Measure and print."""
    args = _parse()
    cfg = dataclasses.replace(
        sizes.TINY,
        width=args.width,
        mlp_width=4 * args.width,
        heads=args.width // 64,
        layers=args.layers,
        reference=True,
        still_concat=False,
        detail_width=None,  # it reads generated cells only: the same in all rows
    )
    model = dit.AvatarDiT(cfg)
    noisy = _latents(cfg, GENERATED)
    params = jax.jit(model.init)(jax.random.key(0), noisy, _time(), Conditions())
    device = jax.devices()[0]
    print(f"device {device.device_kind} x {jax.device_count()}, {platform.processor()}")
    print(
        f"layers {cfg.layers}, width {cfg.width}, {cfg.heads} heads of {cfg.head_dim}, "
        f"{cfg.dtype}; {GENERATED * SIDE**2 // 4} generated tokens, "
        f"{SIDE**2 // 4} per latent; median of {args.repeats}"
    )
    steps, compile_seconds = {}, {}
    for length in LENGTHS:
        for name, step in _steps(model, params, noisy, length).items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            compile_seconds[name, length] = time.perf_counter() - start
            steps[name, length] = step
    seconds = _measure(steps, args.repeats)
    _report(seconds, compile_seconds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    return parser.parse_args()


def _steps(
    model: dit.AvatarDiT, params: dict, noisy: VideoMotion, length: int
) -> dict[str, Callable[[], VideoMotion]]:
    """Return the three ways to make one step with a reference of `length` latents."""
    reference = _reference(model.cfg, length)
    joint = _latents(model.cfg, GENERATED + length)
    run = jax.jit(functools.partial(model.apply))
    cached = Conditions(reference=_cache(model, params, reference))
    uncached = Conditions(reference=reference)
    return {
        "cached": functools.partial(run, params, noisy, _time(), cached),
        "uncached": functools.partial(run, params, noisy, _time(), uncached),
        "dense": functools.partial(run, params, joint, _time(), Conditions()),
    }


def _cache(model: dit.AvatarDiT, params: dict, reference: Reference):
    apply = functools.partial(model.apply, method="cache_reference")
    return jax.jit(apply)(params, reference, None)


def _reference(cfg: dit.DiTConfig, length: int) -> Reference:
    grid = (1, length, SIDE // cfg.patch, SIDE // cfg.patch)
    return Reference(
        latents=_latents(cfg, length).latents,
        valid=jnp.ones(grid, bool),
        segment_ids=jnp.arange(length, dtype=jnp.int32)[None] // SEGMENT,
    )


def _latents(cfg: dit.DiTConfig, frames: int) -> VideoMotion:
    shape = (1, frames, SIDE, SIDE, cfg.channels)
    return VideoMotion(jax.random.normal(jax.random.key(frames), shape))


def _time() -> jax.Array:
    return jnp.full((1,), 0.5)


def _measure(steps: dict, repeats: int) -> dict[tuple[str, int], float]:
    """Interleave the cases, so that a slow minute of the machine meets all of them."""
    samples = {case: [] for case in steps}
    for _ in range(repeats):
        for case, step in steps.items():
            jax.block_until_ready(step())  # the case before may have left cold memory
            start = time.perf_counter()
            jax.block_until_ready(step())
            samples[case].append(time.perf_counter() - start)
    return {case: statistics.median(values) for case, values in samples.items()}


def _report(seconds: dict, compile_seconds: dict) -> None:
    print(f"{'seconds per step':<18}" + "".join(f"{f'R = {r}':>10}" for r in LENGTHS))
    for name in ("cached", "uncached", "dense"):
        row = "".join(f"{seconds[name, r]:>10.4f}" for r in LENGTHS)
        print(f"{name:<18}{row}")
    for name in ("uncached", "dense"):
        row = (seconds[name, r] / seconds["cached", r] for r in LENGTHS)
        print(f"{name + ' / cached':<18}" + "".join(f"{ratio:>10.2f}" for ratio in row))
    first = sum(compile_seconds.values())
    print(f"compile and first call, {len(compile_seconds)} cases: {first:.1f} s")
    lengths = np.array(LENGTHS, float)
    row = [seconds["cached", r] for r in LENGTHS]
    c, b, a = np.polyfit(lengths, row, 2)
    last = lengths[-1]
    share = c * last**2 / (a + b * last + c * last**2)
    print(
        f"cached fit: {a:.4g} + {b:.4g} R + {c:.4g} R^2 s; "
        f"quadratic part at R = {last:.0f}: {100 * share:.1f} %"
    )


if __name__ == "__main__":
    main()
