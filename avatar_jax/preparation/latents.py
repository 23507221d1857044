"""The latents tier of a dataset: what a codec makes of its clips_media.

Beside the video's latents it holds what stage 3 reads of a person: the first frame with
the person blanked, and face crops.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from avatar_jax.data import records
from avatar_jax.media import decode, faces
from avatar_jax.models.codec import LatentCodec
from avatar_jax.preparation import tiers
from avatar_jax.types import FRAMES_PER_LATENT, count_frames, count_latents

# Videos are lengthened to a multiple of this before encoding: few lengths to compile.
_LATENTS_STEP = 5


@dataclasses.dataclass(frozen=True)
class LatentsConfig:
    """Face crops of each clip: how many, and their side in pixels."""

    face_crops: int = 4
    face_size: int = 48


@dataclasses.dataclass(frozen=True)
class _Look:
    """The pictures of one clip beside its video."""

    still: UInt8[np.ndarray, "Y X 3"]  # the person is blanked
    still_box: Float[np.ndarray, " 4"]  # what is blank
    crops: UInt8[np.ndarray, "crops size size 3"]


def add_latents(
    directory: str | Path,
    *,
    codec: LatentCodec,
    config: LatentsConfig = LatentsConfig(),
    batch: int = 16,
) -> None:
    """Add the clips_latents tier of a codec to every split of clips_media.

    Raises InputError where a picture's sides are not multiples of the codec's stride.
    """
    target = records.tier_directory(directory, records.LATENTS, codec.name)
    # Bytes travel to the device, floats are made there.
    run = jax.jit(lambda video: codec.encode(video.astype(jnp.float32) / 127.5 - 1))
    encoder = _Encoder(run, codec.spatial_stride, config, batch)
    for split in tiers.list_splits(directory):
        with tiers.read_media(directory, split, f"latents {codec.name}") as source:
            schema = records.latents_schema()
            records.write_tier(target, split, schema, encoder.encode_all(source))


def cover_cells(
    boxes: Float[np.ndarray, "frames 4"], *, height: int, width: int, stride: int
) -> Float[np.ndarray, "F H W"]:
    """Return the share of each latent cell that lies in the box of its frames.

    Latent 0 is frame 0 alone, latent i the mean of frames 4i-3 .. 4i; `height` and
    `width` are pixels, frames after the last whole latent are left out.
    """
    rows, columns = (np.arange(n // stride) * stride for n in (height, width))
    x0, y0, x1, y1 = boxes.T[..., None]
    across = np.clip(
        np.minimum(columns + stride, x1) - np.maximum(columns, x0), 0, None
    )
    down = np.clip(np.minimum(rows + stride, y1) - np.maximum(rows, y0), 0, None)
    share = down[:, :, None] * across[:, None, :] / stride**2
    later = share[1 : count_frames(count_latents(len(boxes)))]
    later = later.reshape(-1, FRAMES_PER_LATENT, *share.shape[1:]).mean(axis=1)
    return np.concatenate([share[:1], later])


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Encode media records in batches of one shape."""

    run: Callable[[UInt8[np.ndarray, "B frames Y X 3"]], Array]
    stride: int
    config: LatentsConfig
    batch: int

    def encode_all(self, source) -> Iterator[dict[str, Any]]:
        """Encode neighbours of one shape together, in the order of the source."""
        waiting: list[tuple[Mapping[str, Any], np.ndarray, _Look]] = []
        for record in source:
            frames = decode.decode_bytes(record["video"])
            look = self._look(frames, record["face_boxes"])
            video = _lengthen(frames)
            full = len(waiting) == self.batch
            if waiting and (full or waiting[0][1].shape != video.shape):
                yield from self._encode(waiting)
                waiting = []
            waiting.append((record, video, look))
        if waiting:
            yield from self._encode(waiting)

    def _look(
        self,
        frames: UInt8[np.ndarray, "frames Y X 3"],
        boxes: Float[np.ndarray, "frames 4"],
    ) -> _Look:
        box = faces.person_box(boxes[:1], *frames.shape[1:3])
        crops = faces.face_crops(
            frames,
            boxes,
            self.config.face_crops,
            size=self.config.face_size,
            scale=faces.CROP_FACES,
        )
        return _Look(faces.blank_box(frames[0], box), box, crops)

    def _encode(self, waiting: list) -> Iterator[dict[str, Any]]:
        """Encode videos of one shape, padded so that one program serves."""
        records_, videos, looks = zip(*waiting, strict=True)
        latents = self._pictures(np.stack(videos))
        stills = self._pictures(np.stack([look.still for look in looks])[:, None])
        crops = np.concatenate([look.crops for look in looks])
        crops = np.concatenate(
            [
                self._pictures(crops[start : start + self.batch, None])
                for start in range(0, len(crops), self.batch)
            ]
        )[:, 0]
        crops = np.split(crops, len(looks)) if len(crops) else [crops] * len(looks)
        for record, look, made, still, own in zip(
            records_, looks, latents, stills, crops, strict=True
        ):
            count = count_latents(int(record["num_frames"]))
            masks = self._masks(record, look)
            arrays = {"latents": made[:count], "still": still, "faces": own, **masks}
            halves = {name: array.astype(np.float16) for name, array in arrays.items()}
            yield {"key": record["key"], **halves}

    def _pictures(
        self, videos: UInt8[np.ndarray, "some frames Y X 3"]
    ) -> Float[np.ndarray, "some F H W C"]:
        """Run the codec on up to `batch` videos."""
        missing = self.batch - len(videos)
        padded = np.concatenate([videos, np.repeat(videos[-1:], missing, axis=0)])
        return np.asarray(self.run(padded))[: len(videos)]

    def _masks(self, record: Mapping[str, Any], look: _Look) -> dict[str, np.ndarray]:
        sides = {
            "height": int(record["height"]),
            "width": int(record["width"]),
            "stride": self.stride,
        }
        blank = look.still_box
        return {
            "mouth_mask": cover_cells(record["mouth_boxes"], **sides),
            "face_mask": cover_cells(faces.token_boxes(record["face_boxes"]), **sides),
            "still_mask": cover_cells(blank[None], **sides)[0],
        }


def _lengthen(
    frames: UInt8[np.ndarray, "frames Y X 3"],
) -> UInt8[np.ndarray, "longer Y X 3"]:
    """Repeat the last frame; codecs are causal, so the latents before are the same."""
    latents = -(-count_latents(len(frames)) // _LATENTS_STEP) * _LATENTS_STEP
    frames = frames[: count_frames(latents)]
    return np.pad(
        frames, ((0, count_frames(latents) - len(frames)), *[(0, 0)] * 3), "edge"
    )
