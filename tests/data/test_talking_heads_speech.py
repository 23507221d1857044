"""What the procedural people say, and how it moves them (~10 s on 2 cores)."""

import numpy as np
import pytest

from avatar_jax.data.talking_heads import clips, motion, people, phonemes
from avatar_jax.models.speech import LogMel
from avatar_jax.types import InputError

_CONTEXT = 4  # frames on each side


def _code(codes, name):
    return codes[:, motion.MOTION_NAMES.index(name)]


def test_speech_is_what_the_clip_shows():
    person = people.sample_person(2, 7)
    audio, spoken, codes = clips.make_speech(person, 3, 29)
    clip = clips.make_clip(person, scene=1, utterance=3, num_frames=29)
    np.testing.assert_array_equal(audio, clip.audio)
    np.testing.assert_array_equal(spoken, clip.phonemes)
    np.testing.assert_array_equal(codes, clip.motion)
    assert audio.shape == (29 * 640,) and codes.shape == (29, 12)


def _rows(index, utterance, frames=100):
    """Pair the log-mel rows about each frame with the normalised mouth opening."""
    audio, _, codes = clips.make_speech(
        people.sample_person(0, index), utterance, frames
    )
    mel = np.asarray(LogMel()(audio, frames), np.float64)
    padded = np.pad(mel, ((_CONTEXT, _CONTEXT), (0, 0)), mode="edge")
    windows = [padded[k : k + frames] for k in range(2 * _CONTEXT + 1)]
    opening = _code(codes, "mouth_open")
    return np.concatenate(windows, axis=1), (opening - opening.mean()) / opening.std()


def test_a_linear_map_hears_the_mouth_of_people_it_never_met():
    train = [_rows(index, index) for index in range(60)]
    inputs = np.concatenate([x for x, _ in train])
    targets = np.concatenate([y for _, y in train])
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-3
    inputs = (inputs - mean) / scale
    gram = inputs.T @ inputs + 300 * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ targets)
    held_out = [_rows(1000 + index, 2000 + index) for index in range(12)]
    correlations = [
        np.corrcoef(((x - mean) / scale) @ weights, y)[0, 1] for x, y in held_out
    ]
    print(f"ridge from log-mel to mouth_open: r = {np.mean(correlations):.3f}")
    assert np.mean(correlations) > 0.85


def test_lips_close_on_m_b_p_and_in_silence_and_open_on_vowels():
    shut = [phonemes.NAMES.index(name) for name in ("m", "b", "p", "sil")]
    closed, opened = [], []
    for index in range(12):
        person = people.sample_person(1, index)
        _, spoken, codes = clips.make_speech(person, index, 200)
        share = _code(codes, "mouth_open") / person.habits.mouth_gain
        steady = (spoken[:-2] == spoken[1:-1]) & (spoken[1:-1] == spoken[2:])
        middle = spoken[1:-1]
        closed.append(share[1:-1][steady & np.isin(middle, shut)])
        opened.append(share[1:-1][steady & (middle == phonemes.NAMES.index("a"))])
    assert np.median(np.concatenate(closed)) < 0.03
    assert np.median(np.concatenate(opened)) > 0.75


def test_silence_is_quiet_and_speech_is_audible():
    audio, spoken, _ = clips.make_speech(people.sample_person(0, 1), 0, 300)
    power = (audio.reshape(300, 640) ** 2).mean(axis=1)
    silent = spoken == phonemes.SILENCE
    inner = silent[:-2] & silent[1:-1] & silent[2:]
    assert power[1:-1][inner].mean() < 1e-3 * power[~silent].mean()
    assert 0.02 < np.sqrt(power[~silent].mean()) < 0.3
    assert np.abs(audio).max() <= 1


def test_two_people_say_the_same_words_in_their_own_way():
    one, two = people.sample_person(0, 1), people.sample_person(0, 2)
    words = []
    for person in (one, two):
        codes = phonemes.speak(person, 5, 10.0).codes
        words.append([code for code in codes if code != phonemes.SILENCE])
    shared = min(map(len, words))
    assert shared > 40 and words[0][:shared] == words[1][:shared]
    _, _, first = clips.make_speech(one, 5, 100)
    _, _, second = clips.make_speech(two, 5, 100)
    assert np.abs(first - second).mean() > 0.05


def test_habits_show_in_the_motion():
    crowd = [people.sample_person(0, index) for index in range(30)]
    acts = [clips.make_speech(p, i, 500)[2] for i, p in enumerate(crowd)]

    def follows(habit, measure):
        habits = [getattr(p.habits, habit) for p in crowd]
        if habit == "nod":
            habits = [p.habits.nod / round(p.habits.nod_every) for p in crowd]
        return np.corrcoef(habits, [measure(codes) for codes in acts])[0, 1]

    assert follows("mouth_gain", lambda c: np.quantile(c[:, 0], 0.95)) > 0.9
    assert follows("gaze_x", lambda c: _code(c, "gaze_x").mean()) > 0.8
    assert (
        follows("smile_asymmetry", lambda c: _code(c, "smile_asymmetry").mean()) > 0.7
    )
    assert follows("nod", lambda c: _code(c, "pitch").mean()) > 0.5
    blinks = follows(
        "blink_rate", lambda c: (np.diff(_code(c, "blink_left")) > 0).sum()
    )
    assert blinks > 0.4


def test_a_minute_of_speech_starts_as_its_first_seconds():
    person = people.sample_person(0, 4)
    _, whole, codes = clips.make_speech(person, 0, 1500)
    _, start, _ = clips.make_speech(person, 0, 60)
    np.testing.assert_array_equal(whole[:60], start)
    assert np.isfinite(codes).all() and np.abs(codes).max() <= 1


@pytest.mark.parametrize("utterance, frames", [(-1, 5), (0, 0)])
def test_impossible_requests_are_refused(utterance, frames):
    with pytest.raises(InputError, match="at least"):
        clips.make_speech(people.sample_person(0, 0), utterance, frames)
