"""Whom training shows when it is asked for people it does not learn from.

An evaluator of `training.config.Run` like those of `held_out`. Validation people, their
requests and the noise are the same at every call; what is sampled goes through the
request's own preparation and is scored as the demo scores it, but on the frames
themselves, without an mp4 file in between.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from avatar_jax.evaluation import demo_cases, demo_scores, personality_scores
from avatar_jax.objectives import base
from avatar_jax.sampling import pretrained, video
from avatar_jax.types import count_frames

_SPLIT, _SEED = "validation", 0  # of the people, of the noise


@dataclasses.dataclass(frozen=True, eq=False)
class CaseEvaluator:
    """Held-out people, one chunk each: are lips, looks and manner theirs.

    Attributes:
      card: of the model in training; its `size` must be known.
      num_steps: of the sampler, whose other settings are the card's.
    """

    card: pretrained.Card
    num_people: int = 8
    num_steps: int = 8

    def __post_init__(self) -> None:
        if self.card.size < 1 or not self.card.reference_latents:
            raise ValueError(
                f"size={self.card.size}, reference_latents="
                f"{self.card.reference_latents}; give the card of a model that takes a "
                "reference, with the pixels of its pictures."
            )

    def __call__(
        self, step: int, players: base.Players
    ) -> tuple[dict[str, float], dict[str, UInt8[np.ndarray, "frames Y X 3"]]]:
        """Return `cases/...`: sync, identity rank and top-1, style distance."""
        loaded = pretrained.assemble(self.card, players["model"])
        cases, prepared, plan = self._cases
        settings = pretrained.choose_settings(self.card, num_steps=self.num_steps)
        runs = video.generate(
            loaded, prepared, plan=plan, settings=settings, seed=_SEED
        )
        made = list(np.concatenate(list(runs), axis=1))
        by, gallery = self._gallery
        who = [case.person for case in cases]
        found = personality_scores.find(personality_scores.look(made, by), gallery, who)
        rows = {
            "sync": demo_scores.correlate_lips(cases, made, by.motion),
            "identity_rank": found.identity_rank,
            "identity_top1": found.identity_first,
            "style_distance": found.style_distance,
        }
        return {f"cases/{name}": float(row.mean()) for name, row in rows.items()}, {}

    @functools.cached_property
    def _shape(self) -> dict[str, int]:
        frames = count_frames(self.card.chunk_latents)
        return {"num_frames": frames, "size": self.card.size}

    @functools.cached_property
    def _cases(self) -> tuple[list[demo_cases.Case], video.Prepared, video.Plan]:
        encoders = pretrained.assemble(self.card, {})
        with tempfile.TemporaryDirectory() as folder:
            cases = demo_cases.make_cases(
                Path(folder), self.num_people, split=_SPLIT, **self._shape
            )
            return cases, *demo_scores.prepare_cases(cases, encoders)

    @functools.cached_property
    def _gallery(self) -> tuple[personality_scores.Judges, personality_scores.Gallery]:
        by, codec = personality_scores.load_judges(), pretrained.assemble(self.card, {})
        return by, personality_scores.make_gallery(
            _SPLIT, self.num_people, by, codec=codec.codec, **self._shape
        )
