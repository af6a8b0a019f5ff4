"""The names and things the generated problems are about."""

from collections.abc import Sequence

NAMES = tuple(
    "Ada Amir Anna Aylin Ben Bola Carla Chen Clara Dalia David Dina Elena Emil Esra Farid Finn Gita"
    " Goran Hana Hugo Ida Igor Ines Ivan Jana Jonas Julia Kai Karim Kofi Lara Leo Lina Luis Maja"
    " Marco Mei Mila Nadia Nils Noor Olga Omar Otto Pablo Petra Priya Rana Ravi Rosa Sami Sara"
    " Sofia Sven Tara Theo Tomas Uma Vera Wanda Yara Yusuf Zoe".split()
)

THINGS = tuple(
    (one, one[:-1] + "ies" if one.endswith("y") else one + "s")
    for one in "apple bag ball basket berry bell book boot bottle bowl brush button cake candle"
    " cap card chair clock coat coin cookie cup drum fan flag flower fork hat jar kettle key kite"
    " ladder lamp lemon map marble melon mug needle orange pan pear pen pencil pillow plate plum"
    " puppy ribbon ring rope scarf shell shirt shoe spoon stamp stone ticket tile towel train vase"
    " whistle".split()
)
"""Singular and plural."""


def joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
