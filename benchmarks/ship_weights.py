"""Turn a run's weights into package data: half precision, with sampler settings.

  python -m benchmarks.ship_weights runs/stage3 --steps 4 --overshoot 1 --shift 2 \\
      --audio-guidance 1.25 --motion-lead 2 --motion-guidance 2

The settings were chosen with `benchmarks.sampler_settings`; docs/tiny.md says why.
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
    told = {"steps": int, "overshoot": float, "audio_guidance": float}
    told |= {"shift": float, "motion_lead": float, "motion_guidance": float}
    for name, kind in told.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, help="default: what the run's config says")
    args = parser.parse_args()
    params, metadata = checkpoint.load_weights(args.workdir / checkpoint.WEIGHTS_NAME)
    out = pretrained.TINY_WEIGHTS
    fields = {name: getattr(args, name) for name in told}
    fields["num_steps"] = fields.pop("steps")
    metadata |= {name: value for name, value in fields.items() if value is not None}
    checkpoint.save_weights(out, params, metadata, dtype=np.float16)
    size = out.stat().st_size
    print(f"wrote {out.name}: {size / 2**20:.2f} MiB of at most {LIMIT / 2**20:.0f}")
    if size > LIMIT:
        raise SystemExit("too large to ship")


if __name__ == "__main__":
    main()
