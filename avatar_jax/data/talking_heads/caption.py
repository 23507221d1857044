"""A sentence that says who is seen where."""

import colorsys

from avatar_jax.data.talking_heads.looks import Colour
from avatar_jax.data.talking_heads.people import Person
from avatar_jax.data.talking_heads.scene import GARMENTS, Scene

# Upper ends of the hues, in turns.
_HUES = (
    (0.04, "red"),
    (0.11, "orange"),
    (0.19, "yellow"),
    (0.44, "green"),
    (0.53, "teal"),
    (0.70, "blue"),
    (0.80, "purple"),
    (0.95, "pink"),
    (1.01, "red"),
)
_SKIN_TONES = ("very light", "light", "tan", "olive", "brown", "dark")
_PLACES = (
    "a {} wall",
    "{} lights",
    "a {} wall with a window",
    "a {} shelf",
    "a {} studio",
)


def describe(person: Person, scene: Scene) -> str:
    """Describe a person in a scene in one English sentence."""
    looks = person.looks
    style = person.hair_style
    if "shaved" not in style:
        article, words = ("a ", style[2:]) if style.startswith("a ") else ("", style)
        style = (
            f"{article}{person.hair_name} {words}"
            if article
            else (f"{words.split()[0]} {person.hair_name} hair")
        )
    features = [f"{_name_skin(looks.skin)} skin", style]
    features += ["glasses"] * (looks.glasses > 0) + ["a beard"] * (looks.beard > 0.35)
    listed = ", ".join(features[:-1]) + f" and {features[-1]}"
    garment = f"{name_colour(scene.garment_colour)} {GARMENTS[scene.garment]}"
    place = _PLACES[scene.place].format(name_colour(scene.top))
    return f"A talking person with {listed}, in a {garment}, in front of {place}."


def name_colour(colour: Colour) -> str:
    """Name a colour in one or two words."""
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    if saturation < 0.15:
        return "grey"
    name = next(name for end, name in _HUES if hue < end)
    return f"dark {name}" if value < 0.4 else f"light {name}" if value > 0.8 else name


def _name_skin(skin: Colour) -> str:
    share = (0.98 - skin[0]) / (0.98 - 0.40) * len(_SKIN_TONES)
    return _SKIN_TONES[min(max(int(share), 0), len(_SKIN_TONES) - 1)]
