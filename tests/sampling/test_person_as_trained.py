"""Training and sampling see the same thing in the same clip; ~10 s on 2 cores.

Here both are given one file and one box of the face for each frame. Sampling has its
own boxes, which cut face crops otherwise: fixed ones (`portrait_boxes`) in files of the
model's size, the cascade's in others.
"""

import numpy as np
import pytest
import tiny_weights

from avatar_jax.data import records, references, sources
from avatar_jax.data.talking_heads import clips, people
from avatar_jax.media import decode
from avatar_jax.models import codec, faces, judges, speech, text
from avatar_jax.preparation import latents as latents_tier
from avatar_jax.preparation import tiers
from avatar_jax.sampling import person, pretrained
from avatar_jax.types import SAMPLES_PER_FRAME, count_latents

FRAMES, SIZE = 49, 64
# All latents but the first, which is a frame alone: nothing is left to choose.
LATENTS = count_latents(FRAMES) - 1
VIDEO = codec.DCTCodec(tiny_weights.PERSON_CONFIG.channels)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Prepare one clip of a person as `prepare procedural` does."""
    folder = tmp_path_factory.mktemp("records")
    clip = clips.make_clip(
        people.sample_person(0, 3), scene=0, utterance=0, num_frames=FRAMES, size=SIZE
    )
    names = {name: "clip" for name in ("key", "person", "scene", "source")}
    names |= {"caption": clip.caption}
    media = tiers.make_media(
        clip.frames,
        clip.audio,
        clip.face_boxes,
        clip.mouth_boxes,
        names=names,
        rights={},
        scores={},
    )
    tier = records.tier_directory(folder, records.MEDIA)
    records.write_tier(tier, "train", records.media_schema(), [media])
    looks, moves = (
        judges.load(judges.asset(kind, "training")) for kind in ("identity", "motion")
    )
    tiers.add_features(
        folder,
        speech=speech.LogMel(),
        text=text.Bytes(),
        motion={"clip": clip.motion},
        motion_reader=moves.read,
        identity=(looks.embed, faces.IDENTITY_WIDTH),
    )
    latents_tier.add_latents(folder, codec=VIDEO)
    scale = [tiny_weights.PERSON_CARD[f"motion_{name}"] for name in ("mean", "std")]
    records.write_motion_scale(folder, np.array(scale))  # of one clip it is no scale
    return folder


@pytest.fixture(scope="module")
def trained(dataset):
    source = sources.ClipSource(dataset, "train", VIDEO.name)
    config = references.ReferenceConfig(segment_latents=LATENTS, whole=1.0)
    return references.make_reference(
        [source.read(0)], config, np.random.default_rng(0), patch=2
    )


@pytest.fixture(scope="module")
def sampled(dataset):
    """Encode the same frames with the same boxes of the face."""
    tier = records.tier_directory(dataset, records.MEDIA)
    media = records.read_tier(tier, "train")[0]
    crops = latents_tier.LatentsConfig()
    fields = {
        "reference_latents": LATENTS,
        "segment_latents": LATENTS,
        "face_crops": crops.face_crops,
        "face_size": crops.face_size,
    }
    card, params = tiny_weights.make_params(
        tiny_weights.PERSON_CONFIG, size=SIZE, **tiny_weights.PERSON_CARD | fields
    )
    clip = person.PersonClip(
        decode.decode_bytes(media["video"])[1:],
        media["face_boxes"][1:],
        np.ones(FRAMES - 1, bool),
        tiers.read_wave(media)[SAMPLES_PER_FRAME:],
    )
    return person.encode_person(pretrained.assemble(card, params), [clip])


def test_latents_of_the_same_frames_agree(trained, sampled):
    # Records are float16.
    np.testing.assert_allclose(sampled.latents[0], trained.latents, atol=4e-3)
    np.testing.assert_array_equal(sampled.valid[0], trained.valid)
    np.testing.assert_array_equal(sampled.segment_ids[0], trained.segment_ids)


def test_speech_of_the_same_frames_agrees(trained, sampled):
    # The sound before the first row, which it looks at, is cut off here in sampling.
    # Other rows: float16, and a loudness that is measured without the first frame.
    np.testing.assert_allclose(sampled.audio[0, 1:], trained.audio[1:], atol=5e-3)


def test_motion_codes_are_what_the_same_judge_reads(dataset, trained, sampled):
    np.testing.assert_allclose(sampled.motion[0], trained.motion, atol=1e-5)
    exact = sources.ClipSource(dataset, "train", VIDEO.name).read(0).motion[1:]
    assert np.abs(trained.motion - exact).mean() > 0.05


def test_identity_agrees(trained, sampled):
    # Training averages eight frames of a clip, sampling all that are shown.
    assert trained.identity @ np.asarray(sampled.identity[0]) > 0.998


def test_face_crops_agree(trained, sampled):
    # Both choose the same frames here, of which training has one more.
    np.testing.assert_allclose(sampled.faces[0], trained.faces, atol=4e-3)
    np.testing.assert_array_equal(sampled.faces_valid[0], trained.faces_valid)
