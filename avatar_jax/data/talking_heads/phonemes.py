"""The phoneme table, and the sentence that an utterance index stands for.

A sentence depends on (seed, utterance) alone: two people given one utterance say the
same words. Tempo and pauses are the person's.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from avatar_jax.data.talking_heads.people import Person

_TEXT_STREAM = 21


@dataclasses.dataclass(frozen=True)
class Phoneme:
    """One sound: how long, how the mouth is shaped, and what it sounds like."""

    name: str
    seconds: float
    opening: float  # 0 closed, 1 as open as the person's mouth goes
    width: float  # -1 rounded, 1 spread
    formants: tuple[float, float, float]  # Hz
    voicing: float  # amplitude of the pulses
    noise: float  # amplitude of the noise
    noise_low: float = 1000.0  # Hz, where the noise band begins
    closure: float = 0.0  # 1: the lips are shut whatever comes before and after


# Formants: rounded averages of English speakers (Peterson and Barney 1952; Klatt 1980,
# table II). Openings follow the first formant, so that a mouth can be heard.
PHONEMES = (
    Phoneme("sil", 0.30, 0.00, 0.0, (500.0, 1500.0, 2500.0), 0.0, 0.0),
    Phoneme("a", 0.19, 1.00, 0.1, (800.0, 1250.0, 2600.0), 1.0, 0.0),
    Phoneme("ae", 0.18, 0.82, 0.4, (690.0, 1700.0, 2500.0), 0.9, 0.0),
    Phoneme("e", 0.16, 0.58, 0.5, (540.0, 1850.0, 2500.0), 0.75, 0.0),
    Phoneme("i", 0.15, 0.26, 0.9, (290.0, 2250.0, 3000.0), 0.5, 0.0),
    Phoneme("o", 0.18, 0.62, -0.6, (550.0, 880.0, 2450.0), 0.75, 0.0),
    Phoneme("u", 0.16, 0.24, -1.0, (300.0, 800.0, 2300.0), 0.45, 0.0),
    Phoneme("schwa", 0.10, 0.42, 0.0, (470.0, 1450.0, 2500.0), 0.6, 0.0),
    Phoneme("m", 0.09, 0.00, 0.0, (220.0, 1000.0, 2200.0), 0.22, 0.0, closure=1.0),
    Phoneme("n", 0.08, 0.14, 0.1, (240.0, 1500.0, 2500.0), 0.25, 0.0),
    Phoneme("b", 0.085, 0.00, 0.0, (200.0, 800.0, 2200.0), 0.08, 0.0, closure=1.0),
    Phoneme("p", 0.095, 0.00, 0.0, (250.0, 900.0, 2300.0), 0.0, 0.01, closure=1.0),
    Phoneme("f", 0.10, 0.05, 0.2, (300.0, 1200.0, 2400.0), 0.0, 0.12, 1500.0),
    Phoneme("v", 0.08, 0.06, 0.2, (280.0, 1200.0, 2400.0), 0.2, 0.06, 1500.0),
    Phoneme("s", 0.11, 0.10, 0.6, (300.0, 1700.0, 2600.0), 0.0, 0.30, 4200.0),
    Phoneme("sh", 0.11, 0.14, -0.5, (300.0, 1800.0, 2500.0), 0.0, 0.30, 2200.0),
    Phoneme("t", 0.08, 0.12, 0.2, (300.0, 1700.0, 2700.0), 0.0, 0.10, 3200.0),
    Phoneme("d", 0.07, 0.12, 0.2, (250.0, 1700.0, 2700.0), 0.12, 0.03, 3000.0),
    Phoneme("k", 0.09, 0.20, 0.0, (300.0, 1900.0, 2300.0), 0.0, 0.12, 1500.0),
    Phoneme("g", 0.07, 0.18, 0.0, (250.0, 1900.0, 2300.0), 0.12, 0.03, 1500.0),
    Phoneme("l", 0.08, 0.30, 0.2, (360.0, 1050.0, 2800.0), 0.40, 0.0),
    Phoneme("r", 0.08, 0.24, -0.5, (330.0, 1100.0, 1600.0), 0.38, 0.0),
    Phoneme("w", 0.08, 0.10, -1.0, (290.0, 650.0, 2200.0), 0.30, 0.0),
    Phoneme("h", 0.06, 0.35, 0.0, (500.0, 1500.0, 2500.0), 0.0, 0.10, 600.0),
)
NAMES = tuple(p.name for p in PHONEMES)
SILENCE = 0
VOWELS = tuple(NAMES.index(n) for n in ("a", "ae", "e", "i", "o", "u", "schwa"))
_FULL_VOWELS = VOWELS[:-1]
_CONSONANTS = tuple(range(VOWELS[-1] + 1, len(PHONEMES)))
_CODAS = tuple(NAMES.index(n) for n in ("m", "n", "p", "f", "s", "sh", "t", "k", "l"))


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Phonemes in time: `codes[i]` sounds from `starts[i]` to `starts[i + 1]` s."""

    codes: Int[np.ndarray, " phones"]
    starts: Float[np.ndarray, " phones_and_end"]
    stressed: Float[np.ndarray, " phones"]  # 1 on stressed vowels

    def sample(self, times: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Give the position in `codes` that sounds at each time in seconds."""
        place = np.searchsorted(self.starts, times, side="right") - 1
        return np.clip(place, 0, len(self.codes) - 1)


def speak(person: Person, utterance: int, seconds: float) -> Sentence:
    """Write down what `person` says in the first `seconds` of an utterance."""
    rng = np.random.default_rng((person.seed, utterance, _TEXT_STREAM))
    habits = person.habits
    codes, durations, stressed = [SILENCE], [0.2 + 0.25 * rng.random()], [0.0]
    total = durations[0]
    while total < seconds:
        word = _invent_word(rng)
        pause_draw, length_draw = rng.random(2)
        for code, duration, stress in word:
            codes.append(code)
            durations.append(duration / habits.speaking_rate)
            stressed.append(stress)
        if pause_draw < habits.pause_rate:
            codes.append(SILENCE)
            durations.append(habits.pause_length * (0.7 + 0.6 * length_draw))
            stressed.append(0.0)
        total = sum(durations)
    starts = np.concatenate([[0.0], np.cumsum(durations)])
    return Sentence(np.array(codes), starts, np.array(stressed))


def _invent_word(rng: np.random.Generator) -> list[tuple[int, float, float]]:
    """Make one to four syllables of (phoneme, seconds, stress); one is stressed."""
    syllables = 1 + int(rng.choice(4, p=(0.35, 0.35, 0.2, 0.1)))
    accent = int(rng.integers(syllables))
    word = []
    for place in range(syllables):
        accented = place == accent
        onset, full, schwa, coda, coda_draw, stretch = rng.random(6)
        vowel = _pick(_FULL_VOWELS, full)
        if not accented and schwa < 0.3:
            vowel = VOWELS[-1]
        sounds = [_pick(_CONSONANTS, onset), vowel]
        if coda_draw < 0.35:
            sounds.append(_pick(_CODAS, coda))
        for sound in sounds:
            long = (1.3 if accented else 0.95) if sound in VOWELS else 1.0
            seconds = PHONEMES[sound].seconds * long * (0.85 + 0.3 * stretch)
            word.append((sound, seconds, float(accented and sound in VOWELS)))
    return word


def _pick(choices: tuple[int, ...], draw: float) -> int:
    return choices[int(draw * len(choices))]
