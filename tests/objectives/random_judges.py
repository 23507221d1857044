"""The judges' networks with random weights, where training judges are expected."""

import jax
import jax.numpy as jnp
import numpy as np

from avatar_jax.models import faces, judges, quality, speech, sync


def random_judges():
    picture = jax.ShapeDtypeStruct((1, judges.VIEW, judges.VIEW, 3), jnp.float32)
    mouths = jax.ShapeDtypeStruct((1, sync.SYNC_FRAMES, 32, 48, 3), jnp.float32)
    rows = jax.ShapeDtypeStruct(
        (1, sync.SYNC_FRAMES, speech.LogMel().width), jnp.float32
    )
    networks = {
        "identity": (faces.FaceEmbedder(), picture),
        "motion": (sync.MotionRegressor(), picture),
        "sync": (sync.SyncNetwork(), mouths, rows),
        "quality": (quality.QualityNetwork(), picture),
    }
    draw = np.random.default_rng(0)
    return {
        kind: jax.tree.map(
            lambda s: draw.normal(scale=0.1, size=s.shape).astype(np.float32),
            jax.eval_shape(network.init, jax.random.key(0), *shapes)["params"],
        )
        for kind, (network, *shapes) in networks.items()
    }
