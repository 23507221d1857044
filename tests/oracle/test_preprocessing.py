"""Pictures are prepared as the original prepares them, to the pixel (needs ../shared).

About 30 s, most of it the video autoencoder.
"""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar_jax.media import face_points, fitting, person_boxes, pose
from avatar_jax.models import speech_features, vae
from avatar_jax.models.vae_config import WanVAEConfig
from avatar_jax.sampling import tavr, tavr_pictures
from avatar_jax.types import FRAMES_PER_SECOND, count_latents
from avatar_jax.weights import table, wan_vae

ATOL_LATENTS = 5e-5  # README of the golden tensors, section 8
EXACT = 1e-6  # of float32 pictures in [0, 1]


def channels_last(frames):
    """[N] C Y X -> [N] Y X C."""
    return np.moveaxis(frames, -3, -1)


@pytest.mark.parametrize("case", cases.find("face_masks"))
def test_faces_have_the_originals_boxes_and_patches(case):
    told, tensors = cases.load(case)
    for i, (height, width) in enumerate(told["meta"]["sizes"]):
        points = tensors[f"in.keypoints{i}"][:, pose.FACE]
        boxes, found = face_points.face_boxes(points, height, width)
        expected = tensors[f"out.boxes_top_bottom_left_right{i}"][:, [2, 0, 3, 1]]
        np.testing.assert_array_equal(np.where(found[:, None], boxes, -1), expected)
        patches = face_points.mark_patches(boxes, height, width)
        np.testing.assert_array_equal(patches, tensors[f"out.patch_grid{i}"])
        if f"out.pixel_masks{i}" in tensors:
            shown = np.zeros((len(boxes), height, width), bool)
            for mask, (left, top, right, bottom) in zip(shown, boxes, strict=True):
                mask[top:bottom, left:right] = True
            np.testing.assert_array_equal(shown, tensors[f"out.pixel_masks{i}"])


@pytest.mark.parametrize("case", cases.find("person_boxes"))
def test_people_have_the_originals_boxes(case):
    told, tensors = cases.load(case)
    for i, size in enumerate(told["meta"]["sizes"]):
        counts = np.cumsum(tensors[f"in.raw_counts{i}"])
        frames = np.split(tensors[f"in.raw_boxes{i}"], counts[:-1])
        box = person_boxes.Letterbox(*size)
        boxes, found = person_boxes.choose_people(frames, box)
        came = np.where(found[:, None], boxes, -1)
        np.testing.assert_array_equal(came, tensors[f"out.boxes{i}"])


@pytest.mark.parametrize("case", cases.find("person_boxes"))
def test_people_cover_the_originals_cells(case):
    told, tensors = cases.load(case)
    meta = told["meta"]
    pairs = zip(meta["fg_boxes"], meta["fg_sizes"], strict=True)
    for i, (box, size) in enumerate(pairs):
        cells = person_boxes.foreground_cells(np.array(box), *size)
        np.testing.assert_array_equal(cells[None], tensors[f"out.foreground{i}"])


@pytest.mark.parametrize("case", cases.find("person_boxes"))
def test_letterbox_is_the_originals(case):
    _, tensors = cases.load(case)
    frames = (channels_last(tensors["in.letterbox_frames"]) + 1) / 2
    box = person_boxes.Letterbox(*frames.shape[1:3])
    geometry = [*box.scale, box.top, box.left, *box.size]
    np.testing.assert_allclose(geometry, tensors["out.letterbox_geometry"], rtol=1e-12)
    name = "out.letterbox_subsampled_16"
    came = [person_boxes.fit_letterbox(frame)[::16, ::16] for frame in frames]
    expected = channels_last(tensors[name])
    np.testing.assert_allclose(np.stack(came), expected, atol=EXACT)


@pytest.mark.parametrize("case", cases.find("pose"))
def test_pose_crops_and_points_are_the_originals(case):
    told, tensors = cases.load(case)
    frame = channels_last(tensors["in.frame"])
    windows = pose.grow_boxes(np.array(told["meta"]["crop_boxes"]))
    for i, window in enumerate(windows):
        np.testing.assert_array_equal(window, tensors[f"out.crop_geometry{i}"])
        crop = pose.cut_window(frame, window)
        expected = channels_last(tensors[f"out.crop{i}"])
        np.testing.assert_array_equal(crop, expected)
        scores = tensors["in.simcc_x"], tensors["in.simcc_y"]
        points = pose.decode_points(*scores, window)
        np.testing.assert_array_equal(points, tensors[f"out.keypoints{i}"])


@pytest.mark.parametrize("case", cases.find("smart_crop"))
def test_clips_are_cropped_where_the_original_crops_them(case):
    told, tensors = cases.load(case)
    meta = told["meta"]

    def corner_and_sides(box):
        if box is None:
            return np.full(4, -1)
        return np.concatenate([box[:2], np.subtract(box[2:], box[:2])])

    pairs = zip(meta["sizes"], meta["buckets"], strict=True)
    for i, (size, bucket) in enumerate(pairs):
        points = tensors[f"in.keypoints{i}"][:, pose.FACE]
        lifted = np.stack([face_points.lift_brows(face) for face in points])
        np.testing.assert_array_equal(lifted, tensors[f"out.forehead{i}"])
        union = face_points.union_of_faces(points, *size)
        expected = tensors[f"out.face_union{i}"]
        np.testing.assert_array_equal(
            np.full(4, -1) if union is None else union, expected
        )
        crop = None
        if union is not None:
            crop = face_points.choose_crop(union, tuple(size), tuple(bucket))
        np.testing.assert_array_equal(
            corner_and_sides(crop), tensors[f"out.crop_box{i}"]
        )
    given = meta["cb_faces"], meta["cb_sizes"], meta["cb_buckets"]
    crops = [
        face_points.choose_crop(np.array(face), tuple(size), tuple(bucket))
        for face, size, bucket in zip(*given, strict=True)
    ]
    came = [corner_and_sides(crop) for crop in crops]
    np.testing.assert_array_equal(came, tensors["out.crop_boxes"])


@pytest.mark.parametrize("case", cases.find("media"))
def test_pictures_are_fitted_as_the_original_fits_them(case):
    told, tensors = cases.load(case)
    meta = told["meta"]
    sizes = [fitting.cover_size(*map(tuple, pair)) for pair in meta["cover"]]
    np.testing.assert_array_equal(sizes, tensors["out.cover_sizes"])
    for i, bucket in enumerate(meta["still_buckets"]):
        came = fitting.fit_still(tensors[f"in.still{i}"], tuple(bucket))
        np.testing.assert_array_equal(came, tensors[f"out.still{i}"])
    bucket = tuple(meta["frame_bucket"])
    frames = [fitting.fit_frame(frame, bucket) for frame in tensors["in.frames"]]
    signed = (np.stack(frames) - np.float32(0.5)) / np.float32(0.5)
    expected = channels_last(tensors["out.frames_f32"])
    np.testing.assert_allclose(signed, expected, atol=2 * EXACT)
    rounded = fitting.fit_frames(tensors["in.frames"], bucket)
    expected = channels_last(tensors["out.frames_bf16_as_f32"])
    np.testing.assert_array_equal(rounded, expected)
    video = np.moveaxis(tensors["in.pixels"], 0, -1)
    np.testing.assert_array_equal(fitting.to_pixels(video), tensors["out.uint8"])


def load_codec(case):
    """Build the codec that a case was made with, from its weights."""
    told, _ = cases.load(case)
    weights = cases.weights(case)["vae"]
    channels = weights["conv2.bias"].shape[0]
    cfg = WanVAEConfig(width=told["meta"]["base_dim"], channels=channels)
    params = table.assemble(wan_vae.entries(cfg), weights)
    return vae.WanCodec(jax.tree.map(jnp.asarray, params), cfg)


def read_buckets(told):
    return [tuple(told["meta"]["buckets"][name]) for name in ("landscape", "portrait")]


def latents_last(latents):
    """C F H W -> 1 F H W C."""
    return np.moveaxis(latents, 0, -1)[None]


@pytest.mark.parametrize("case", cases.find("target"))
def test_scene_is_the_originals(case):
    told, tensors = cases.load(case)
    still = tensors["in.still"]
    bucket = fitting.choose_bucket(still.shape[:2], read_buckets(told))
    fitted = fitting.fit_still(still, bucket)
    person = np.array(told["meta"]["person_box"])
    cells = person_boxes.foreground_cells(person, *bucket)
    np.testing.assert_array_equal(cells[None], tensors["out.foreground"])
    scene = tavr_pictures.encode_scene(fitted, person, codec=load_codec(case))
    expected = latents_last(tensors["out.latents"])
    np.testing.assert_allclose(scene.still, expected, atol=ATOL_LATENTS)


@pytest.mark.parametrize("case", cases.find("reference"))
def test_reference_is_the_originals(case):
    told, tensors = cases.load(case)
    meta, constants, frames = (
        told["meta"],
        told["constants"],
        tensors["in.frames_uint8"],
    )
    bucket = fitting.choose_bucket(tensors["in.still"].shape[:2], read_buckets(told))
    plan = tavr.make_plan(meta["num_frames"], count_latents(constants["FRAME_BUCKET"]))
    window = tavr_pictures.choose_window(
        int(meta["duration"] * FRAMES_PER_SECOND),
        num_frames=meta["num_frames"],
        num_chunks=plan.num_chunks,
        latents=constants["reference_latents"],
    )
    speech = None
    if meta["has_audio"]:
        rows, null = tensors["in.wav2vec_features"], tensors["in.null_audio"]
        speech = speech_features.reference_track(rows, len(frames), null[0])
    reference = tavr_pictures.prepare_reference(
        frames,
        window=window,
        bucket=bucket,
        detector=lambda shown: tensors["in.keypoints"][: len(shown), pose.FACE],
        codec=load_codec(case),
        speech=speech,
    )
    expected = latents_last(tensors["out.latents"])
    np.testing.assert_allclose(reference.latents, expected, atol=ATOL_LATENTS)
    np.testing.assert_array_equal(reference.valid[0], tensors["out.face_masks"])
    assert not np.any(reference.segment_ids)
    if meta["has_audio"]:
        np.testing.assert_array_equal(reference.audio, tensors["out.audio"])


@pytest.mark.parametrize("case", cases.find("reference"))
def test_frames_reach_the_codec_with_the_originals_roundings(case):
    told, tensors = cases.load(case)
    (name,) = (key for key in tensors if key.startswith("mid.vae_input_frames"))
    first, last = map(int, re.findall(r"\d+", name))
    lead = int(tensors["mid.vae_input_shape"][1]) - len(tensors["in.frames_uint8"])
    bucket = tensors["in.frames_uint8"].shape[1:3]
    index = np.maximum(np.arange(first, last + 1) - lead, 0)  # copies lead
    fitted = fitting.fit_frames(tensors["in.frames_uint8"][index], bucket)
    came = fitting.to_signed(fitting.to_unit(fitted))
    expected = np.moveaxis(tensors[name], 0, -1)
    np.testing.assert_array_equal(came, expected)


@pytest.mark.parametrize("case", cases.find("valid_masks"))
def test_background_and_faces_are_what_counts(case):
    told, tensors = cases.load(case)
    generated = told["constants"]["generated_latents"]
    for i in range(told["meta"]["n"]):
        cells = tensors[f"in.foreground{i}"]
        seen = tensors[f"out.case{i}.first_chunk"][generated : generated + 1]
        patch = cells.shape[-1] // seen.shape[-1]
        np.testing.assert_array_equal(tavr.background_patches(cells, patch), seen)
