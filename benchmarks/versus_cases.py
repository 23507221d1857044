"""What `benchmarks.versus_torch` runs on both sides: sizes, weights and inputs.

Weights are drawn once and written as diffusers keeps them (config.json and safetensors
under its names), in the precision of the run, so that both sides hold the same numbers.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from avatar_jax.models import sizes
from avatar_jax.models.dit_config import DiTConfig
from avatar_jax.types import count_latents
from avatar_jax.weights import files, leaves, networks, wan
from avatar_jax.weights.table import Entry

SEED = 0
TIMESTEP = 500  # of 1000
CLASS = "WanTransformer3DModel"
# Gain of normed queries: scores of standard deviation 3 leave a row of 30,000 keys a
# few that count, as trained weights do. At 1 attention would be an average of next to
# nothing, and an output could not tell a wrong kernel from a right one.
QUERY_GAIN = 3.0

# Wan2.1 text-to-video 1.3B: the widths of BASE without what Wan does not have.
WAN = dataclasses.replace(
    sizes.BASE,
    audio_width=None,
    motion_width=None,
    rotary_scale=wan.ROTARY_SCALE,
    remat=False,
)
TINY_WAN = dataclasses.replace(
    WAN, width=128, mlp_width=320, heads=2, layers=2, text_width=48, dtype="float32"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One size of picture.

    Attributes:
      cfg: of the network that both sides run.
      frames, height, width: of the video, pixels.
      text_rows: of the prompt.
      speech: widths of driving and reference speech, of our own rows with a reference.
    """

    name: str
    cfg: DiTConfig
    frames: int
    height: int
    width: int
    text_rows: int = 512
    speech: tuple[int, int] = (
        sizes.LARGE.audio_width,
        sizes.LARGE.reference_audio_width,
    )

    @property
    def latents(self) -> tuple[int, int, int, int, int]:
        """Shape of the latents, `1 F H W C`."""
        stride = self.cfg.spatial_stride
        cells = (self.height // stride, self.width // stride)
        return (1, count_latents(self.frames), *cells, self.cfg.channels)

    @property
    def rows(self) -> int:
        """Rows of the transformer that are generated."""
        _, frames, height, width, _ = self.latents
        return frames * height * width // self.cfg.patch**2

    @property
    def reference_cfg(self) -> DiTConfig:
        """TAVR's layout in the same widths."""
        driving, own = self.speech
        return dataclasses.replace(
            self.cfg,
            audio_width=driving,
            reference=True,
            reference_audio_width=own,
            rotary_scale=sizes.LARGE.rotary_scale,
        )

    def describe(self) -> str:
        """Say all sizes in one line."""
        cfg = self.cfg
        return (
            f"{self.name}: {self.height}x{self.width} pixels, {self.frames} frames, "
            f"latents {list(self.latents)}, {self.rows} rows; text {self.text_rows} x "
            f"{cfg.text_width}; {cfg.layers} layers of {cfg.width}, {cfg.heads} heads "
            f"of {cfg.head_dim}, feed-forward {cfg.mlp_width}; {cfg.dtype}"
        )


CASES = {
    case.name: case
    for case in (
        Case("480p", WAN, 81, 480, 832),
        Case("720p", WAN, 81, 720, 1280),
    )
}
TINY = Case("tiny", TINY_WAN, 9, 64, 96, text_rows=7, speech=(40, 24))


def find(name: str) -> Case:
    """Return a case by name."""
    return TINY if name == TINY.name else CASES[name]


def write_weights(folder: Path, cfg: DiTConfig) -> None:
    """Write random weights, reproducible from `SEED`, as a model of diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = networks.describe("wan", cfg, [wan.DIFFUSERS_KEY]).entries
    dtype = leaves.DTYPES[cfg.dtype]
    with (folder / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(files.make_header((e.name, dtype, e.shape) for e in entries))
        for index, entry in enumerate(entries):
            file.write(_draw(entry, index).astype(dtype).tobytes())
    fields = {
        "_class_name": CLASS,
        "patch_size": [1, cfg.patch, cfg.patch],
        "num_attention_heads": cfg.heads,
        "attention_head_dim": cfg.head_dim,
        "in_channels": cfg.channels,
        "out_channels": cfg.channels,
        "text_dim": cfg.text_width,
        "freq_dim": cfg.time_features,
        "ffn_dim": cfg.mlp_width,
        "num_layers": cfg.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


def write_inputs(path: Path, case: Case) -> None:
    """Write noise `1 C F H W` and a prompt `1 L D`, float32 that the run can hold."""
    rng = np.random.default_rng([SEED, case.rows])
    batch, frames, height, width, channels = case.latents
    shapes = {
        "noise": (batch, channels, frames, height, width),
        "text": (batch, case.text_rows, case.cfg.text_width),
    }
    dtype = leaves.DTYPES[case.cfg.dtype]
    arrays = {
        name: rng.standard_normal(shape, np.float32).astype(dtype).astype(np.float32)
        for name, shape in shapes.items()
    }
    np.savez(path, **arrays)


def _draw(entry: Entry, index: int) -> Float[np.ndarray, "..."]:
    """Draw a tensor whose layer keeps the size of what passes through it."""
    rng = np.random.default_rng([SEED, index])
    values = rng.standard_normal(entry.shape, np.float32)
    if entry.name.endswith("scale_shift_table"):
        return 0.3 * values
    if entry.name.endswith(".bias"):
        return 0.02 * values
    if len(entry.shape) == 1:  # the gain of a norm
        gain = QUERY_GAIN if entry.name.endswith("norm_q.weight") else 1.0
        return gain * (1 + 0.1 * values)
    return values * np.prod(entry.shape[1:], dtype=np.float32) ** -0.5
