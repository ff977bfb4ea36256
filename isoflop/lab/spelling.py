"""Generated pairs: made-up words and their pronunciation by rules, the lab's own transduction task.

    chadube  ->  CH AX D UW1 B          one pair per line, a tab between the two, sounds separated by spaces

The pronunciation is a function of the spelling alone, so that every output can be predicted, but not from one letter at
a time: c and g are soft before e, i and y; a silent e at the end makes the vowel before it long; s is voiced between
vowels; neighbouring obstruents take the voice of the last one; the stress lies on the last long vowel, or the first
vowel if none is long; unstressed short a, e and o are reduced.
"""

import random
from pathlib import Path

from isoflop.files import NAME_HOME, disk_errors, home, write_text

VERSION = 1  # of the words and the rules: a new one where other pairs are written
WORDS = 30_000
SEED = 20
ONSETS = (
    *("b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "g", "gl", "gr", "h", "j", "k", "l", "m", "n"),
    *("p", "ph", "pl", "pr", "qu", "r", "s", "sh", "sl", "sp", "st", "str", "t", "th", "tr", "v", "w", "z"),
)
NUCLEI = (*("a", "e", "i", "o", "u") * 3, "ai", "ea", "ee", "oa", "oo", "ou")
CODAS = ("", "", "", "", "b", "ck", "d", "g", "l", "m", "n", "nd", "ng", "nk", "p", "r", "s", "st", "t", "x", "z")

GROUPS = ("ch", "ck", "ng", "ph", "qu", "sh", "th", "ai", "ea", "ee", "oa", "oo", "ou")  # read together
LONG = {"ai": "EY", "ea": "IY", "ee": "IY", "oa": "OW", "oo": "UW", "ou": "AW"}
LONG_LETTERS = {"a": "EY", "e": "IY", "i": "AY", "o": "OW", "u": "UW"}
SHORT_LETTERS = {"a": "AE", "e": "EH", "i": "IH", "o": "AA", "u": "AH"}
REDUCED = ("AE", "EH", "AA")
CONSONANTS = {
    **{"b": ["B"], "ch": ["CH"], "ck": ["K"], "d": ["D"], "f": ["F"], "h": ["HH"], "j": ["JH"], "k": ["K"], "l": ["L"]},
    **{"m": ["M"], "n": ["N"], "ng": ["NG"], "p": ["P"], "ph": ["F"], "qu": ["K", "W"], "r": ["R"], "sh": ["SH"]},
    **{"t": ["T"], "th": ["TH"], "v": ["V"], "w": ["W"], "x": ["K", "S"], "y": ["Y"], "z": ["Z"]},
}
VOICED = {"P": "B", "T": "D", "K": "G", "F": "V", "S": "Z", "SH": "ZH", "CH": "JH", "TH": "DH"}
VOICELESS = {voiced: voiceless for voiceless, voiced in VOICED.items()}
SOFTENING = ("e", "i", "y")  # first letters before which c and g are soft
VELAR = ("K", "G")  # before which n is NG


def draw_word(generator: random.Random) -> str:
    """A word of one to four syllables, a third of them with an e at the end."""
    syllables = generator.choices((1, 2, 3, 4), (1, 4, 4, 2))[0]
    word = "".join(
        generator.choice(ONSETS) + generator.choice(NUCLEI) + generator.choice(CODAS) for _ in range(syllables)
    )
    return word + "e" if generator.random() < 1 / 3 and word[-1] not in "aeioux" else word


def pronounce(word: str) -> str:
    """The sounds of a word, separated by spaces; vowels have a 1 if they are stressed."""
    letters = grouped(word)
    silent = len(letters) > 2 and letters[-1] == "e" and letters[-2] not in NUCLEI
    read = letters[:-1] if silent else letters

    sounds: list[str] = []
    vowels: list[tuple[int, bool]] = []  # place and length
    for at, group in enumerate(read):
        following = letters[at + 1] if at + 1 < len(letters) else ""
        if group in NUCLEI:
            lengthened = (silent and at == len(read) - 2) or at == len(read) - 1
            vowels.append((len(sounds), group in LONG or lengthened))
            sounds.append(LONG.get(group) or (LONG_LETTERS if lengthened else SHORT_LETTERS)[group])
        else:
            before = letters[at - 1] if at else ""
            sounds += consonant(group, before, following)

    sounds = assimilated(sounds)
    stressed = next((place for place, long in reversed(vowels) if long), vowels[0][0] if vowels else -1)
    for place, long in vowels:
        if place == stressed:
            sounds[place] += "1"
        elif not long and sounds[place] in REDUCED:
            sounds[place] = "AX"
    return " ".join(sounds)


def grouped(word: str) -> list[str]:
    """Letters and groups of letters that are read together, from left to right."""
    found, at = [], 0
    while at < len(word):
        size = 2 if word[at : at + 2] in GROUPS else 1
        found.append(word[at : at + size])
        at += size
    return found


def consonant(group: str, before: str, following: str) -> list[str]:
    """The sounds of a consonant between two groups of letters, "" at an end of the word."""
    soft = following[:1] in SOFTENING and following != ""
    if group == "c":
        return ["S" if soft else "K"]
    if group == "g":
        return ["JH" if soft else "G"]
    if group == "s":
        return ["Z" if before in NUCLEI and following in NUCLEI else "S"]
    return list(CONSONANTS[group])


def assimilated(sounds: list[str]) -> list[str]:
    """The same with obstruents voiced as the next one is, from the last to the first, and n velar before K and G."""
    made = list(sounds)
    for at in range(len(made) - 2, -1, -1):
        here, following = made[at], made[at + 1]
        if following in VOICELESS and here in VOICED:
            made[at] = VOICED[here]
        elif following in VOICED and here in VOICELESS:
            made[at] = VOICELESS[here]
        elif here == "N" and following in VELAR:
            made[at] = "NG"
    return made


def words() -> list[str]:
    """The different words, always the same ones in the same order."""
    generator = random.Random(SEED)
    drawn: dict[str, None] = {}
    while len(drawn) < WORDS:
        drawn[draw_word(generator)] = None
    return list(drawn)


def write() -> Path:
    """The file of pairs below $ISOFLOP_HOME, written unless it is there.

    Raises:
        UserError: if there is no room for it.
    """
    path = home() / "lab-text" / f"spelling-{VERSION}.tsv"
    if not path.exists():
        with disk_errors("the generated pairs", instead=NAME_HOME):
            write_text(path, "".join(f"{word}\t{pronounce(word)}\n" for word in words()))
    return path
