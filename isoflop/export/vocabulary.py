"""Converts tokenizers of other formats from and to the JSON of the `tokenizers` library.

SentencePiece BPE stores pieces with scores and no merges: it merges the pair whose joint piece has the highest score.
Merges in the order of that score give the same ids. It adds a leading space to a text; U+2581 in a piece is a space,
and text without a piece is encoded in bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from isoflop.errors import UserError
from isoflop.untrusted import foreign, parse_json, read_text

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
LONGEST_PIECE = 1024  # characters
# Kinds of pieces, with the numbers of SentencePiece and GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def plain() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits_apart() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain()])


# GGUF's name of a pre-tokenizer, which splits text before merging -> a function that makes it.
CUTS = {
    "gpt-2": plain,
    "default": plain,
    "smollm": digits_apart,
    "llama-bpe": lambda: split_by(LLAMA3_SPLIT),
    "qwen2": lambda: split_by(QWEN2_SPLIT),
}


def read_tokenizer(folder: Path) -> str:
    """The tokenizer of a Hugging Face folder, as JSON: tokenizer.json, or GPT-2's vocab.json and merges.txt.

    Raises:
        UserError: if there is none.
    """
    if (folder / "tokenizer.json").is_file():
        return spell_out_prefix(without_composition(read_text(folder / "tokenizer.json")))
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = parse_json(read_text(folder / "vocab.json"), str(folder / "vocab.json"))
        lines = read_text(folder / "merges.txt").split("\n")
        merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
        with foreign(f"{folder}: vocab.json and merges.txt are not a tokenizer"):
            return byte_level(vocabulary, merges, "gpt-2", {}, str(folder))
    if (folder / "tokenizer.model").is_file():
        raise UserError(
            f"{folder / 'tokenizer.model'} is SentencePiece's own format, which is not supported; save the tokenizer "
            "as tokenizer.json (transformers' AutoTokenizer does), or name another with --tokenizer FILE"
        )
    raise UserError(
        f"{folder} has no tokenizer.json, and no vocab.json with merges.txt; name a tokenizer with --tokenizer FILE"
    )


def without_composition(text: str) -> str:
    """A byte-level tokenizer.json without Qwen's NFC normaliser: text that is composed already, as nearly all text is,
    keeps its ids, and other text decodes exactly. GGUF omits it as well."""
    try:
        described = parse_json(text, "")
        if described["normalizer"] != {"type": "NFC"} or described["decoder"]["type"] != "ByteLevel":
            return text
    except (UserError, KeyError, TypeError):  # not a tokenizer: Tokenizer.from_json raises the error
        return text
    return json.dumps({**described, "normalizer": None}, ensure_ascii=False)


def spell_out_prefix(text: str) -> str:
    """A SentencePiece tokenizer.json whose leading space is added by "Metaspace", with an invertible rule instead.

    Metaspace adds no space if the text has one, so that "a" and " a" get the same ids.
    """
    try:
        described = parse_json(text, "")
        cut, model = described.get("pre_tokenizer") or {}, described.get("model") or {}
        if cut.get("type") != "Metaspace" or not model.get("byte_fallback") or cut.get("split", True):
            return text
        if cut.get("prepend_scheme", "always") == "never" or described.get("normalizer"):
            return text
        with foreign(""):
            inner = tokenizers.Tokenizer.from_str(text)
    except (UserError, AttributeError):  # not a tokenizer: Tokenizer.from_json raises the error
        return text
    with_prefix(inner)
    return str(inner.to_str())


def with_prefix(inner: tokenizers.Tokenizer) -> None:
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    inner.pre_tokenizer = None
    inner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def sentencepiece(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], start: int | None, origin: str
) -> str:
    """SentencePiece BPE with byte fallback as a tokenizer.json.

    Args:
        kinds: of each piece: NORMAL, CONTROL, BYTE, ...
        start: the id that begins a document, if there is one.

    Raises:
        UserError: for two equal pieces, or a byte without a piece.
    """
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise UserError(f"{origin}: its tokenizer has two equal pieces")
    if any(len(piece) > LONGEST_PIECE for piece in pieces):  # each is tried at every cut
        raise UserError(f"{origin}: its tokenizer has a piece of more than {LONGEST_PIECE} characters")
    missing = [b for b in range(256) if f"<0x{b:02X}>" not in vocabulary]
    if missing:
        raise UserError(
            f"{origin}: its tokenizer has no piece for byte {missing[0]:#04x}, so it cannot encode every text"
        )

    joined = {piece for piece, kind in zip(pieces, kinds, strict=True) if kind == NORMAL}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece in joined:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in joined and right in joined:
                rank = -scores[vocabulary[piece]]
                merges.append((rank, vocabulary[left], vocabulary[right], (left, right)))
    merges.sort()

    unknown = next((p for p, kind in zip(pieces, kinds, strict=True) if kind == UNKNOWN), None)
    pairs = [pair for *_, pair in merges]
    special = [p for p, kind in zip(pieces, kinds, strict=True) if kind not in (NORMAL, BYTE)]
    with foreign(f"{origin}: its pieces are not a tokenizer"):
        model = models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        inner = tokenizers.Tokenizer(model)
        with_prefix(inner)
        inner.add_special_tokens([AddedToken(p, special=True, normalized=False) for p in special])
        if start is not None:
            begin_with(inner, pieces[start], start)
        return str(inner.to_str())


def starting(text: str, piece: str, number: int) -> str:
    """A tokenizer.json that adds one token before a text and nothing after it, as isoflop does; a pair of texts gets
    one such token."""
    with foreign("this tokenizer"):
        inner = tokenizers.Tokenizer.from_str(text)
        around = list(inner.encode("", add_special_tokens=True).ids)
        if around != [number]:
            begin_with(inner, piece, number)
        return str(inner.to_str())


def begin_with(inner: tokenizers.Tokenizer, piece: str, number: int) -> None:
    inner.post_processor = processors.TemplateProcessing(
        single=[piece, "$A"], pair=[piece, "$A", "$B"], special_tokens=[(piece, number)]
    )


def byte_level(
    vocabulary: dict[str, int],
    merges: Sequence[str],
    cut: str,
    added: dict[str, bool],
    origin: str,
    start: int | None = None,
) -> str:
    """Byte-level BPE as a tokenizer.json.

    Args:
        merges: "left right", in order.
        cut: GGUF's name of the pre-tokenizer.
        added: pieces that are not results of merges -> whether they are special, that is, not text.
        start: the id that begins a document, if there is one.

    Raises:
        UserError: for an unknown pre-tokenizer, or merges that do not belong to the vocabulary.
    """
    if cut not in CUTS:
        raise UserError(f"{origin}: its tokenizer splits text by {cut[:80]!r}; supported are {', '.join(CUTS)}")

    pairs = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if any(piece not in vocabulary for piece in (left, right, left + right)):
            raise UserError(f"{origin}: {merge[:80]!r} is not a merge of two pieces of its vocabulary")
        pairs.append((left, right))

    named = {piece: True for piece in vocabulary if piece.startswith("<|") and piece.endswith("|>")} | added
    with foreign(f"{origin}: its vocabulary and merges are not a tokenizer"):
        inner = tokenizers.Tokenizer(models.BPE(vocabulary, pairs))
        inner.pre_tokenizer, inner.decoder = CUTS[cut](), decoders.ByteLevel()
        inner.add_tokens([AddedToken(p, special=special, normalized=False) for p, special in named.items()])
        if start is not None:
            begin_with(inner, next(p for p, i in vocabulary.items() if i == start), start)
        return str(inner.to_str())


def cut_of(described: dict[str, Any]) -> str:
    """GGUF's name of the pre-tokenizer of a byte-level tokenizer.json.

    Raises:
        UserError: if it is not one of CUTS.
    """
    for name, make in CUTS.items():
        probe = tokenizers.Tokenizer(models.BPE())
        probe.pre_tokenizer = make()
        if same_cut(json.loads(probe.to_str())["pre_tokenizer"], described.get("pre_tokenizer")):
            return name
    raise UserError(f"the tokenizer splits text by none of the pre-tokenizers supported for GGUF: {', '.join(CUTS)}")


def same_cut(first: Any, second: Any) -> bool:
    """Whether two pre-tokenizers are equal, apart from ByteLevel's trim_offsets, which does not affect ids."""
    return without_offsets(first) == without_offsets(second)


def without_offsets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_offsets(item) for key, item in value.items() if key != "trim_offsets"}
    return [without_offsets(item) for item in value] if isinstance(value, list) else value


def scores_of(described: dict[str, Any]) -> dict[str, float]:
    """Scores that reproduce the merges of a SentencePiece tokenizer.json: minus the rank of a piece's first merge."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(described["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    return scores
