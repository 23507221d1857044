"""Judges in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from human_cases import make_simple_params

from avatar_jax.models import judges
from avatar_jax.objectives import human_aware


@pytest.fixture
def simple(monkeypatch):
    """Judges in closed form, one weight each; what they are shown is remembered."""
    shown = {"frames": [], "speech": []}

    def remember(name, leaf):
        if not isinstance(leaf, jax.core.Tracer):
            shown[name].append(np.asarray(leaf))

    def embed(params, frames):
        remember("frames", frames)
        mean = frames.mean((1, 2)) + params["w"]
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    def read(params, frames):
        return params["w"] * frames[:, ::8, ::8, 0].reshape(len(frames), -1)

    def perceive(params, frames):
        return [params["w"] * frames]

    def distance(params, frames, speech):
        remember("speech", speech)
        return jnp.abs(frames.mean((2, 3, 4)) * params["w"] - speech[..., 0]).mean(1)

    monkeypatch.setattr(judges, "embed_faces", embed)
    monkeypatch.setattr(judges, "read_motion", read)
    monkeypatch.setattr(judges, "quality_features", perceive)
    monkeypatch.setattr(judges, "sync_distance", distance)
    monkeypatch.setattr(human_aware, "load_judges", lambda: make_simple_params())
    return shown
