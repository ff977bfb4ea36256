"""TOKENIZERS: the kinds of tokenizer that `data.tokenizer` can train; any other value is the path of a file.

Adding one takes a class and a line in the table. Every kind trains a tokenizer of the `tokenizers` library, which run
folders and exports contain as a tokenizer.json: reading one needs no entry here.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, ClassVar

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

EOT = "<|endoftext|>"
PRINTABLE = frozenset((*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)))
MOST_UNITS = 1000  # more different symbols are the words of a language rather than units
USES_A_UNIT = 20  # the least average number of uses of a unit


class Kind:
    """A kind of tokenizer that is trained on the text.

    Class attributes:
        words: its description, for the account of the data.
        smallest: ids of the smallest possible vocabulary.
        reason: why no smaller one is possible, as a sentence.
    """

    words: ClassVar[str] = ""
    smallest: ClassVar[int] = 2
    reason: ClassVar[str] = "a vocabulary has at least one id for text, and <|endoftext|>"

    def version(self) -> str:
        """Changes whenever the same text would give other ids: it enters the key of the prepared data."""
        raise NotImplementedError

    def train(self, texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
        """A tokenizer of at most `vocab_size` ids, EOT included (`with_eot`), that gives any text back exactly."""
        raise NotImplementedError

    def train_on_pairs(self, inputs: Sequence[str], outputs: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
        """One tokenizer for both sides of pairs."""
        return self.train(itertools.chain(inputs, outputs), vocab_size)

    def described(self) -> str:
        """A description of a tokenizer trained on text."""
        return f"trained {self.words}"

    def described_on_pairs(self, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        """A description of a tokenizer trained on these pairs."""
        return f"{self.words} trained on both sides"


class ByteLevelBPE(Kind):
    """Byte-pair encoding over bytes (Sennrich et al. 2016, 1508.07909; over bytes as in GPT-2): 256 bytes, merges of
    pairs seen at least twice, and `<|endoftext|>` as the last id. A text too small for that many merges gives a smaller
    vocabulary."""

    words: ClassVar[str] = "byte-level BPE"
    smallest: ClassVar[int] = 257
    reason: ClassVar[str] = "a byte-level vocabulary has at least 257 ids (256 bytes and <|endoftext|>)"

    def version(self) -> str:
        return version("tokenizers")

    def train(self, texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
        inner = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return with_eot(inner)

    def train_on_pairs(self, inputs: Sequence[str], outputs: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
        """A tokenizer that suits the pairs; each falls back to bytes, so that every text decodes exactly.

        A side whose texts have no spaces consists of single words, and such tasks are about letters: bytes. A side with
        few symbols separated by spaces (phonemes) gets one id per symbol. Anything else is running text: one BPE is
        trained on both sides.
        """
        sides = [(texts, kind_of(texts)) for texts in (inputs, outputs)]
        if any(kind == "text" for _, kind in sides):
            return super().train_on_pairs(inputs, outputs, vocab_size)
        return units_in_bytes(sorted({unit for texts, kind in sides if kind == "units" for unit in units_of(texts)}))

    def described_on_pairs(self, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        kinds = [kind_of(texts) for texts in (inputs, outputs)]
        if "text" in kinds:
            return super().described_on_pairs(inputs, outputs)
        return " -> ".join({"words": "bytes", "units": "units between blanks"}[kind] for kind in kinds)


TOKENIZERS: dict[str, type[Kind]] = {
    "bpe": ByteLevelBPE,
}


def find_kind(setting: str) -> Kind | None:
    """The kind that `data.tokenizer` names; None if it is the path of a given tokenizer."""
    return TOKENIZERS[setting]() if setting in TOKENIZERS else None


def origin_of(setting: str) -> str:
    """The name of a kind with its version, for the key of the prepared data."""
    return f"{setting} {TOKENIZERS[setting]().version()}"


def quoted() -> str:
    """The names of all kinds, for help and errors: `"bpe"`."""
    return " or ".join(f'"{name}"' for name in TOKENIZERS)


# Parts of the kinds


def byte_characters() -> list[str]:
    """The character that represents each byte in a byte-level vocabulary (GPT-2's table).

    Printable bytes represent themselves; the other 68 are mapped, in order, to the code points from 256 on.
    """
    characters = [chr(b) if b in PRINTABLE else "" for b in range(256)]
    moved = (chr(256 + n) for n in range(256))
    return [character or next(moved) for character in characters]


def byte_level(model: Any) -> tokenizers.Tokenizer:
    """A tokenizer over bytes, which splits text by GPT-2's pattern."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    return inner


def with_eot(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with `<|endoftext|>` as its last id."""
    inner.add_special_tokens([AddedToken(EOT, special=True, normalized=False)])
    return inner


def units_in_bytes(units: Iterable[str]) -> tokenizers.Tokenizer:
    """One id for each unit, at the beginning and after a space; everything else is spelt in bytes.

    For text in a small set of symbols separated by spaces, such as phonemes: `AH0 B AW1 T` is four ids. There are no
    merges, so other words are encoded letter by letter.
    """
    table = byte_characters()
    vocabulary = {character: byte for byte, character in enumerate(table)}
    for unit in units:
        for piece in (unit, f" {unit}"):
            vocabulary.setdefault("".join(table[byte] for byte in piece.encode()), len(vocabulary))
    inner = byte_level(models.BPE(vocabulary, [], ignore_merges=True))  # a piece that is an entry is that id
    blanks = pre_tokenizers.Split(tokenizers.Regex(" ?[^ ]+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [blanks, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return with_eot(inner)


def kind_of(texts: Sequence[str]) -> str:
    """The kind of text of one side of pairs: "words", "units" or "text"; see ByteLevelBPE.train_on_pairs."""
    if 10 * sum(" " in text for text in texts) < len(texts):
        return "words"
    units = units_of(texts)
    closed = len(units) <= MOST_UNITS and units.total() >= USES_A_UNIT * len(units)
    return "units" if closed else "text"


def units_of(texts: Iterable[str]) -> Counter[str]:
    """The number of occurrences of each unit between spaces."""
    return Counter(unit for text in texts for unit in text.split(" ") if unit)
