"""Measure the mean and std by which DCTCodec normalises, and its round trip.

    python -m benchmarks.codec_statistics --videos FOLDER --procedural 200 --size 64

Clips of a folder (centre square, resized) and procedural clips weigh the same. Prints
the two constants of avatar_jax/models/codec.py, and PSNR with the constants it has.
"""

import argparse
import pathlib

import cv2
import jax
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import decode
from avatar_jax.models import codec

FRAMES = 49  # 13 latents; 4n+1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=pathlib.Path, help="folder of real clips")
    parser.add_argument("--procedural", type=int, default=100, help="number of people")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--limit", type=int, default=100, help="clips of the folder")
    args = parser.parse_args()

    sources = {"procedural": list(render_clips(args.procedural, args.size))}
    if args.videos:
        paths = sorted(args.videos.glob("*.mp4"))[: args.limit]
        sources["real"] = [read_clip(p, args.size) for p in tqdm(paths, "decode")]

    measure = jax.jit(raw_coefficients)
    moments = [moments_of(measure(np.stack(videos))) for videos in sources.values()]
    first, second = np.mean(moments, axis=0)
    t, y, x, c = codec.kept_coefficients(len(codec.STD))
    constant = (t == 0) & (y == 0) & (x == 0)
    centre = np.where(constant, first, 0)
    std = np.sqrt(second - centre**2)
    print("COLOUR_MEAN =", tuple(np.round(first[constant], 3).tolist()))
    print("STD =", tuple(np.round(std, 4).tolist()))
    for name, videos in sources.items():
        print(name, f"PSNR {measure_psnr(np.stack(videos)):.1f} dB")


def raw_coefficients(
    video: Float[Array, "B frames Y X 3"],
) -> Float[Array, "B F H W C"]:
    """Encode without normalisation, every block but the single frame in front."""
    dct = codec.DCTCodec(len(codec.STD))
    return dct.encode_clips(video[:, 1:]) * dct.std + dct.mean


def moments_of(latents: Float[np.ndarray, "B F H W C"]) -> Float[np.ndarray, "2 C"]:
    """Return the mean and the mean square of each channel."""
    flat = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
    return np.stack([flat.mean(0), (flat**2).mean(0)])


def measure_psnr(video: Float[np.ndarray, "B frames Y X 3"]) -> float:
    """Return the PSNR in dB of the codec's round trip, over all pixels."""
    dct = codec.DCTCodec()
    back = jax.jit(lambda v: dct.decode(dct.encode(v)))(video)
    return float(-10 * np.log10(np.mean((np.asarray(back) - video) ** 2) / 4))


def render_clips(number: int, size: int):
    """Yield procedural training clips in [-1, 1]."""
    indices = (i for i in range(10 * number) if people.split_of(i) == "train")
    for _, index in zip(tqdm(range(number), "render"), indices, strict=False):
        person = people.sample_person(0, index)
        clip = clips.make_clip(
            person, scene=index, utterance=index, num_frames=FRAMES, size=size
        )
        yield normalise(clip.frames)


def read_clip(path: pathlib.Path, size: int) -> Float[np.ndarray, "frames Y X 3"]:
    """Read a clip's first frames, centre square, resized, in [-1, 1]."""
    frames = decode.read_video(path).frames[:FRAMES]
    side = min(frames.shape[1:3]) * 2 // 3
    top, left = ((length - side) // 2 for length in frames.shape[1:3])
    square = frames[:, top : top + side, left : left + side]
    resized = [
        cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in square
    ]
    return normalise(np.stack(resized))


def normalise(frames: np.ndarray) -> Float[np.ndarray, "frames Y X 3"]:
    """Turn bytes into float32 in [-1, 1]."""
    return frames.astype(np.float32) / 127.5 - 1


if __name__ == "__main__":
    main()
