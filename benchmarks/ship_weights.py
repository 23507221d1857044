"""Turn a run's weights into package data: half precision, with sampler settings.

  python -m benchmarks.ship_weights runs/stage2 --steps 12 --overshoot 0.5 \\
      --audio-guidance 1.75

The settings are those that `evaluate demo --split validation` was best with.
"""

import argparse
from pathlib import Path

import numpy as np

from avatar_jax import checkpoint
from avatar_jax.sampling import pretrained

LIMIT = 16 * 2**20  # bytes


def main() -> None:
    """Write avatar_jax/assets/tiny.safetensors and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--overshoot", type=float, required=True)
    parser.add_argument("--audio-guidance", type=float, required=True)
    parser.add_argument("--shift", type=float, default=1.0)
    parser.add_argument("--motion-lead", type=float, default=1.0)
    args = parser.parse_args()
    params, metadata = checkpoint.load_weights(args.workdir / checkpoint.WEIGHTS_NAME)
    out = pretrained.TINY_WEIGHTS
    metadata["num_steps"] = args.steps
    metadata["overshoot"] = args.overshoot
    metadata["audio_guidance"] = args.audio_guidance
    metadata["shift"] = args.shift
    metadata["motion_lead"] = args.motion_lead
    checkpoint.save_weights(out, params, metadata, dtype=np.float16)
    size = out.stat().st_size
    print(f"wrote {out.name}: {size / 2**20:.2f} MiB of at most {LIMIT / 2**20:.0f}")
    if size > LIMIT:
        raise SystemExit("too large to ship")


if __name__ == "__main__":
    main()
