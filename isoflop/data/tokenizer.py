"""A tokenizer with an exact round trip, based on the `tokenizers` library.

It is trained here, built from GPT-2's merges (which determine its 50,257 ids), or read from any tokenizer.json that
decodes text exactly. Text is never encoded as the end-of-text id: a literal `<|endoftext|>` in a document is ordinary
text, and only data preparation puts the id between documents.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from isoflop.data.kinds import (
    EOT,
    PRINTABLE,
    TOKENIZERS,
    ByteLevelBPE,
    byte_characters,
    byte_level,
    quoted,
    units_in_bytes,
    with_eot,
)
from isoflop.data.pieces import Remembered
from isoflop.errors import UserError
from isoflop.untrusted import foreign, parse_json, read_bytes

EOT_NAMES = (EOT, "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|im_end|>", "<|eot_id|>", "<s>")
LIKELY_SPECIAL = re.compile(r"<\|?[A-Za-z_][^<>]*\|?>|\[[A-Z_]+\]|</[a-z_]+>")
MARK = "end_of_text"  # a field that marks the entry of an added token
PLAIN_STRETCH = 4096  # characters that are looked up in the cache, or passed to the library, at once
SAFE_CUT = re.compile(r"[A-Za-z](?= )")
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
MOST_UNUSED = 100_000  # ids without an entry, in addition to as many as there are entries
MOST_GROWTH = 64  # factor by which a tokenizer's rules may lengthen a text; SentencePiece's: 3
PROBE = (
    "Ab  c\n\n\tdé\r\n\r \x00\x7f  naïve 中文 \U0001f600 \ufeff e\u0301\u0301 \u0378\U000e0fff \ud7ff\uffff 12,345!  "
)


class Tokenizer:
    """Text <-> ids.

    Attributes:
        vocab_size: the largest id plus one.
        eot: the id that ends a document.
        end_of_text: the name of that token, if it is not one of EOT_NAMES.
        start: the id that a model reads before a document: the tokenizer's own start token if its encoding with special
            tokens begins with one (`begins`), as LLaMA's does; else `eot`, which ended the previous document.

    Raises:
        UserError: if the tokenizer has no known end-of-text token or does not decode a probe text exactly.
    """

    def __init__(self, inner: tokenizers.Tokenizer, origin: str = "tokenizer", end_of_text: str = "") -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # special tokens written in the text are text
        self._inner = inner

        self.vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self.vocabulary.values(), default=-1) + 1
        if self.vocab_size > 2 * len(self.vocabulary) + MOST_UNUSED:
            raise UserError(f"{origin} has an id {self.vocab_size - 1} and only {len(self.vocabulary)} entries")

        self.end_of_text = end_of_text
        self.eot = find_eot(self.vocabulary, origin, end_of_text)
        around = list(inner.encode("", add_special_tokens=True).ids)  # the special tokens around a text
        self.begins = bool(around)
        self.start: int = around[0] if around else self.eot
        if not 0 <= self.start < self.vocab_size:
            raise UserError(f"{origin} begins texts with the id {self.start}, which is not in its vocabulary")

        self._pieces = self._bytes_of_ids()
        self._strips_space = not self._byte_level and self._joined(self.encode("a")) == b" a"
        self._probe(origin)

        added = inner.get_added_tokens_decoder().values()
        self._splits_at_spaces = (  # GPT-2's pattern: no piece contains a letter followed by a space
            isinstance(inner.pre_tokenizer, pre_tokenizers.ByteLevel)
            and inner.pre_tokenizer.use_regex
            and inner.normalizer is None
            and all(token.special for token in added)
        )
        by_piece = (  # a piece has the same ids in every position
            self._splits_at_spaces and not inner.pre_tokenizer.add_prefix_space and not inner.model.dropout
        )
        self._remembered = Remembered(self._ids_of) if by_piece else None

    # Origins

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train byte-level BPE: see kinds.ByteLevelBPE."""
        return cls(ByteLevelBPE().train(texts, vocab_size))

    @classmethod
    def of_units(cls, units: Iterable[str]) -> "Tokenizer":
        """One id for each unit, everything else spelled in bytes: see kinds.units_in_bytes."""
        return cls(units_in_bytes(units))

    @classmethod
    def from_gpt2_merges(cls, path: Path | str, end_of_text: str = "") -> "Tokenizer":
        """GPT-2's tokenizer from its merges (`vocab.bpe`): ids are the 256 bytes in GPT-2's order, then one per merge.

        Raises:
            UserError: if the file is missing or not a list of merges.
        """
        text = read_text(Path(path))
        table = byte_characters()
        in_order = sorted(range(256), key=lambda b: (b not in PRINTABLE, b))  # printable bytes first
        vocabulary = {table[b]: i for i, b in enumerate(in_order)}

        merges: list[tuple[str, str]] = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip() or (number == 1 and line.startswith("#version")):
                continue
            pair = line.rstrip("\r").split(" ")
            if len(pair) != 2 or pair[0] not in vocabulary or pair[1] not in vocabulary:
                raise UserError(
                    f"{path} line {number} ({line[:40]!r}) is not a merge of two known pieces; "
                    "name a tokenizer.json or GPT-2's vocab.bpe"
                )
            merges.append((pair[0], pair[1]))
            vocabulary.setdefault("".join(pair), len(vocabulary))

        if not merges:
            raise UserError(f"{path} holds no merges; name a tokenizer.json or GPT-2's vocab.bpe")
        with foreign(f"{path} is not a list of merges"):
            return cls(with_eot(byte_level(models.BPE(vocabulary, merges))), str(path), end_of_text)

    @classmethod
    def from_json(cls, text: str, origin: str = "tokenizer.json", end_of_text: str = "") -> "Tokenizer":
        """Any tokenizer in the `tokenizers` library's JSON form.

        Args:
            end_of_text: the name of the token that ends a document; "": the one that `to_json` has marked, else the
                first of EOT_NAMES that is in the vocabulary.

        Raises:
            UserError: if it is malformed, lossy or has no end-of-text token.
        """
        described = parse_json(text, f"{origin} is not a tokenizer.json: it")
        # The rules are untrusted, and the library raises bare Exceptions and panics.
        with foreign(f"{origin} is not a tokenizer.json"):
            if growth(described) > MOST_GROWTH:
                raise ValueError("its rules make a text longer without bound")
            for added in described.get("added_tokens") or []:
                if added.pop(MARK, False) is True:
                    end_of_text = end_of_text or added["content"]
                added["special"] = added["special"] or added["content"] in (*EOT_NAMES, end_of_text)
            inner = tokenizers.Tokenizer.from_str(json.dumps(described))
            if end_of_text and end_of_text in inner.get_vocab(with_added_tokens=False):  # no text may be encoded as it
                inner.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
            return cls(inner, origin, end_of_text)

    @classmethod
    def from_file(cls, path: Path | str, end_of_text: str = "") -> "Tokenizer":
        """A tokenizer.json or GPT-2's merges, distinguished by content."""
        text = read_text(Path(path))
        if text.lstrip().startswith("{"):
            return cls.from_json(text, str(path), end_of_text)
        return cls.from_gpt2_merges(path, end_of_text)

    @classmethod
    def given(cls, setting: str, end_of_text: str = "") -> "Tokenizer | None":
        """The tokenizer of the file that `data.tokenizer` names; None if it names a kind, which is trained."""
        return None if setting in TOKENIZERS else cls.from_file(setting, end_of_text)

    def to_json(self) -> str:
        """The JSON that `from_json` reads. An end-of-text token with an uncommon name is marked by a field that the
        library and other readers ignore."""
        text = str(self._inner.to_str())
        return mark_end(text, self.eot) if self.end_of_text else text

    # Text <-> ids

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int64 ids of each text, as `encode` gives them."""
        if self._remembered is not None:
            return [self._remembered.ids(self.stretches(text, PLAIN_STRETCH)) for text in texts]
        return [np.array(ids, dtype=np.int64) for ids in self._ids_of(texts)]

    def stretches(self, text: str, length: int) -> list[str]:
        """Split a long text into parts of about `length` characters where that does not change its ids: before a space
        that follows a letter, if the tokenizer never merges those two; else it is not split."""
        if len(text) <= length or not self._splits_at_spaces:
            return [text]
        parts, start = [], 0
        while match := SAFE_CUT.search(text, start + length):
            parts.append(text[start : match.end()])
            start = match.end()
        return [*parts, text[start:]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special tokens and ids above the last have none; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], begins: bool = True) -> bytes:
        """The exact bytes of ids, which may begin or end within a character.

        A SentencePiece tokenizer adds a space before a text, which is removed here unless `begins` is False, for ids
        that continue others.
        """
        joined = self._joined(ids)
        return joined[1:] if begins and self._strips_space and joined.startswith(b" ") else joined

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int64: the bytes of text of each id; 0 for `eot` and other special tokens."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    # Inside

    def _ids_of(self, texts: Sequence[str]) -> Iterator[list[int]]:
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return (encoding.ids for encoding in encodings)

    def _joined(self, ids: Iterable[int]) -> bytes:
        return b"".join([self._pieces[i] for i in ids if i < self.vocab_size])

    def _bytes_of_ids(self) -> list[bytes]:
        pieces = [b""] * self.vocab_size
        added = self._inner.get_added_tokens_decoder()
        of_character = {character: byte for byte, character in enumerate(byte_characters())}
        self._byte_level = isinstance(self._inner.decoder, decoders.ByteLevel)
        of_a = [] if self._byte_level else self.encode("a")[-1:]
        anchor = self._inner.decode(of_a) if of_a else ""
        for piece, i in self.vocabulary.items():
            if i in added:
                pieces[i] = b"" if added[i].special else piece.encode()
            elif self._byte_level:
                pieces[i] = bytes(of_character[c] for c in piece if c in of_character)
            elif BYTE_PIECE.fullmatch(piece):  # SentencePiece's byte fallback
                pieces[i] = bytes([int(piece[3:5], 16)])
            else:
                pieces[i] = self._inner.decode([*of_a, i])[len(anchor) :].encode()
        return pieces

    def _probe(self, origin: str) -> None:
        """Check the round trip of a text with the characters that tokenizers tend to lose (except SentencePiece's own
        U+2581)."""
        probe = PROBE + " ".join(
            ["x", *EOT_NAMES, *(t.content for t in self._inner.get_added_tokens_decoder().values())]
        )
        ids = self.encode(probe)
        if self.decode_bytes(ids) != probe.encode() or self.decode_bytes(self.encode(" a")) != b" a":
            raise UserError(
                f"{origin} does not give text back exactly (white space, case or rare characters are lost), so bits "
                f"per byte would mean nothing; choose a byte-level tokenizer or {quoted()}"
            )
        if self.eot in ids:
            raise UserError(f"{origin} turns text into its end-of-text id {self.eot}; mark that token as special")


class NoEndOfText(UserError):
    """A tokenizer has no end-of-text token with a common name.

    Attributes:
        problem: the message without advice.
        example: a token that it may be.
    """

    def __init__(self, problem: str, example: str) -> None:
        super().__init__(f"{problem}: name its own with --set 'data.end_of_text={example}'")
        self.problem, self.example = problem, example


def mark_end(text: str, eot: int) -> str:
    """A tokenizer.json in which the added token that ends a document is marked."""
    described = json.loads(text)
    for added in described["added_tokens"]:
        if added["id"] == eot:
            added[MARK] = True
    return json.dumps(described, ensure_ascii=False)


def with_end_of_text(text: str, end: str | int | None) -> str:
    """A tokenizer.json in which a token is marked as the end of text, if no token has one of EOT_NAMES.

    Args:
        end: the token's name or id, from the file next to the tokenizer; None: unknown.
    """
    try:
        described = parse_json(text, "")
        added = {token["content"]: token["id"] for token in described.get("added_tokens") or []}
        of_model = described["model"]["vocab"]
        listed = of_model if isinstance(of_model, dict) else {piece: i for i, (piece, _) in enumerate(of_model)}
        ids = {**listed, **added}
        has_end = any(name in ids for name in EOT_NAMES) or any(
            MARK in token for token in described.get("added_tokens") or []
        )
    except (UserError, AttributeError, KeyError, TypeError, ValueError):  # not a tokenizer: from_json will say so
        return text

    name = next((piece for piece, i in ids.items() if i == end), None) if isinstance(end, int) else end
    if has_end or not isinstance(name, str) or name not in ids:
        return text
    return Tokenizer.from_json(text, end_of_text=name).to_json()


def find_eot(vocabulary: dict[str, int], origin: str, end_of_text: str = "") -> int:
    """The id of the token that ends a document.

    Raises:
        UserError: if there is no token with that name.
        NoEndOfText: if no name is given and there is none of EOT_NAMES.
    """
    for name in (end_of_text,) if end_of_text else EOT_NAMES:
        if name in vocabulary:
            return vocabulary[name]
    likely = [name for name in vocabulary if LIKELY_SPECIAL.fullmatch(name)][:8]
    similar = f"; similar tokens of it: {', '.join(likely)}" if likely else ""
    if end_of_text:
        raise UserError(f"{origin} has no token {end_of_text!r}, which data.end_of_text names{similar}")
    example = likely[0] if likely else "NAME"
    raise NoEndOfText(f"{origin} has no end-of-text token of a known name ({', '.join(EOT_NAMES)}){similar}", example)


def growth(described: Any) -> float:
    """The factor by which the rules of a tokenizer.json can lengthen a text.

    Thirty rules that each replace one letter by two would turn a letter into a gigabyte.
    """
    factor = 1.0
    for part in ("normalizer", "decoder"):
        steps = [described.get(part)]
        while steps:
            step = steps.pop()
            if not isinstance(step, dict):
                continue
            for name in ("normalizers", "decoders"):
                steps += step[name] if isinstance(step.get(name), list) else []
            content, pattern = step.get("content"), step.get("pattern")
            if step.get("type") == "Replace" and isinstance(content, str):
                replaced = pattern.get("String") if isinstance(pattern, dict) else None
                length = len(replaced) if isinstance(replaced, str) else 0
                # in bytes of UTF-8; a pattern that matches the empty string inserts between any two of them
                factor *= max(1.0, len(content.encode()) / length if length else 1.0 + len(content.encode()))
    return factor


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError:
        raise UserError(f"tokenizer {path} is not text; name a tokenizer.json or GPT-2's vocab.bpe") from None
    except UserError as error:
        raise UserError(f"tokenizer {error}; name a tokenizer.json, GPT-2's vocab.bpe or {quoted()}") from None
