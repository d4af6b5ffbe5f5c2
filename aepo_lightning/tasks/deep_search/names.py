"""Invented names: no word of one is a word of another, unless it is meant to be confused with it."""

from random import Random

_ONSETS = (
    *("b", "br", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m"),
    *("n", "p", "pr", "r", "s", "st", "t", "tr", "v", "w", "z"),
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("k", "l", "m", "n", "r", "th", "x", "")
_STEMMED = ("er", "al", "ar", "or", "e")
"""Endings that a stemmer may cut: of words that differ by one of them only one is used."""

_ADJECTIVES = (
    *("Amber", "Broken", "Crimson", "Distant", "Empty", "Frozen", "Gilded", "Hollow", "Ivory", "Jagged", "Lonely"),
    *(
        "Marble",
        "Narrow",
        "Ochre",
        "Patient",
        "Quiet",
        "Restless",
        "Scarlet",
        "Tangled",
        "Umber",
        "Velvet",
        "Wandering",
    ),
    *("Ashen", "Bitter", "Cobalt", "Dusty", "Emerald", "Faded", "Grey", "Hidden", "Iron", "Jade", "Last", "Molten"),
    *("Northern", "Painted", "Rusted", "Silent", "Twilight", "Woven"),
)
_NOUNS = (
    *("Anchor", "Bridge", "Candle", "Door", "Engine", "Feather", "Garden", "Harvest", "Island", "Jewel", "Kettle"),
    *("Lantern", "Mirror", "Needle", "Orchard", "Pillar", "Quarry", "River", "Staircase", "Tower", "Valley", "Window"),
    *("Archive", "Bell", "Compass", "Drum", "Echo", "Ferry", "Glacier", "Horizon", "Inn", "Journey", "Key", "Loom"),
    *("Meadow", "Nest", "Oar", "Path", "Raven", "Saddle"),
)


class NameGiver:
    """Gives names from one stream of random numbers.

    Args:
        random: Where the names come from.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._stems: set[str] = set()
        titles = [f"The {adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
        random.shuffle(titles)
        self._titles = titles

    def word(self) -> str:
        """Return a capitalised word that was not given before."""
        while True:
            syllables = self._random.choice((2, 2, 3))
            word = "".join(self._syllable(is_last=number == syllables - 1) for number in range(syllables))
            stem = next((word.removesuffix(end) for end in _STEMMED if word.endswith(end)), word)
            if len(word) in range(5, 10) and stem not in self._stems:
                self._stems.add(stem)
                return word.capitalize()

    def title(self) -> str:
        """Return the title of a work that was not given before: `The Amber Lantern`."""
        return self._titles.pop()

    def _syllable(self, is_last: bool) -> str:
        choice = self._random.choice
        return choice(_ONSETS) + choice(_VOWELS) + (choice(_CODAS) if is_last or self._random.random() < 0.2 else "")


NUM_TITLES = len(_ADJECTIVES) * len(_NOUNS)
"""Works that a world may have."""
