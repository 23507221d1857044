"""The head of the motion stream (~5 s)."""

import jax
import jax.numpy as jnp
import numpy as np
from dit_cases import FULL, C, make_conditions, make_noisy

from avatar_jax.models import dit, motion_head


def test_rows_of_a_latent_belong_to_its_four_frames_and_the_first_has_its_last():
    rows = jnp.arange(12.0).reshape(1, 3, 4, 1)
    frames = motion_head._per_frame(rows, 9)
    np.testing.assert_array_equal(frames[0, :, 0], np.arange(3, 12))


def test_codes_are_of_float32_whatever_the_activations():
    model = dit.AvatarDiT(FULL.__class__(**vars(FULL) | {"dtype": "bfloat16"}))
    inputs = make_noisy(), jnp.ones((2,)), make_conditions()
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *inputs)
    assert out.motion.dtype == jnp.float32 and out.latents.shape[-1] == C
