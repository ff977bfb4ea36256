"""Reads and writes tokenizers in the header of a GGUF file: byte-level BPE ("gpt2") and SentencePiece BPE ("llama")."""

import json
from dataclasses import dataclass
from typing import Any

from isoflop.data.tokenizer import Tokenizer, with_end_of_text
from isoflop.errors import UserError
from isoflop.export.fields import Fields
from isoflop.export.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    byte_level,
    cut_of,
    scores_of,
    sentencepiece,
)

NO_MERGES = "a tokenizer without merges, which llama.cpp does not load"
# The key of the token that ends a document, if it has an uncommon name: "eos" may be the end of a turn in a
# conversation.
END_OF_TEXT = "isoflop.end_of_text_token_id"


def read_tokenizer(fields: Fields) -> str:
    """The tokenizer in the header as JSON, with its end-of-text token marked if that has an uncommon name."""
    text = read_pieces(fields)
    if (end_of_text := fields.get(END_OF_TEXT, None)) is None:
        end = fields.get("tokenizer.ggml.eos_token_id", None)
        return with_end_of_text(text, end if isinstance(end, int) else None)
    pieces = fields.list_of("tokenizer.ggml.tokens", str)
    if not isinstance(end_of_text, int) or not 0 <= end_of_text < len(pieces):
        raise fields.wrong(END_OF_TEXT, end_of_text, "the id of a token")
    return Tokenizer.from_json(text, fields.origin, pieces[end_of_text]).to_json()


def read_pieces(fields: Fields) -> str:
    """The tokenizer in the header as JSON."""
    kind = fields.text("tokenizer.ggml.model")
    pieces = fields.list_of("tokenizer.ggml.tokens", str)
    kinds = fields.list_of("tokenizer.ggml.token_type", int, [NORMAL] * len(pieces))
    if len(kinds) != len(pieces):
        raise UserError(f"{fields.origin}: its tokenizer has {len(pieces)} tokens and {len(kinds)} types")

    while kinds and kinds[-1] == UNUSED:  # rows that pad the table
        pieces, kinds = pieces[:-1], kinds[:-1]
    begins = fields.flag("tokenizer.ggml.add_bos_token", kind == "llama")
    first = fields.get("tokenizer.ggml.bos_token_id", None) if begins else None
    if first is not None and (not isinstance(first, int) or not 0 <= first < len(pieces)):
        raise fields.wrong("tokenizer.ggml.bos_token_id", first, "the id of a token")

    if kind == "llama":
        if not fields.flag("tokenizer.ggml.add_space_prefix", True):
            raise UserError(f"{fields.origin}: its tokenizer adds no space before a text, as isoflop's of that kind do")
        scores = fields.list_of("tokenizer.ggml.scores", float)
        if len(scores) < len(pieces):
            raise UserError(f"{fields.origin}: its tokenizer has {len(pieces)} tokens and {len(scores)} scores")
        return sentencepiece(pieces, scores, kinds, first, fields.origin)

    if kind != "gpt2":
        raise UserError(f"{fields.origin}: a tokenizer of kind {kind[:80]!r} is not read; gpt2 and llama are")
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise UserError(f"{fields.origin}: its tokenizer has two tokens of the same text")
    added = {p: kind == CONTROL for p, kind in zip(pieces, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)}
    merges = fields.list_of("tokenizer.ggml.merges", str)
    cut = fields.text("tokenizer.ggml.pre", "default")
    return byte_level(vocabulary, merges, cut, added, fields.origin, first)


@dataclass(frozen=True)
class TokenizerValues:
    """The values of a tokenizer in the header. There are as many `pieces` as the model has rows."""

    model: str
    cut: str
    pieces: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    start: int
    eot: int
    own_name: bool  # of the token that ends a document

    def add_to(self, writer: Any) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(self.pieces)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_bos_token_id(self.start)
        writer.add_eos_token_id(self.eot)
        writer.add_pad_token_id(self.eot)
        if self.own_name:
            writer.add_uint32(END_OF_TEXT, self.eot)
        writer.add_add_bos_token(True)  # isoflop's models read `start` before every text
        writer.add_add_space_prefix(self.model == "llama")


def tokenizer_values(text: str, rows: int) -> TokenizerValues:
    """A tokenizer.json as values of a GGUF header, for a model with `rows` rows.

    Raises:
        UserError: for a tokenizer that is neither byte-level BPE nor SentencePiece BPE with byte fallback.
    """
    described = json.loads(text)
    tokenizer = Tokenizer.from_json(text)
    model = described["model"]
    if model.get("type") != "BPE":
        raise UserError(f"a tokenizer of kind {model.get('type')} cannot be written as a GGUF model; BPE can")

    spelt = bool(model.get("byte_fallback"))
    special = {token["content"]: bool(token["special"]) for token in described.get("added_tokens") or []}
    pieces = [f"[PAD{i}]" for i in range(rows)]
    kinds = [UNUSED] * len(pieces)
    for piece, i in tokenizer.vocabulary.items():
        pieces[i] = piece
        byte = spelt and len(piece) == 6 and piece.startswith("<0x")
        unknown = piece == model.get("unk_token")
        kinds[i] = UNKNOWN if unknown else BYTE if byte else NORMAL
        if piece in special and not unknown:
            kinds[i] = CONTROL if special[piece] else USER_DEFINED

    if not spelt and not model["merges"]:
        raise UserError(f"{NO_MERGES}, cannot be written as a GGUF model; export --to hf")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    scores = scores_of(described) if spelt else {}
    return TokenizerValues(
        model="llama" if spelt else "gpt2",
        cut="default" if spelt else cut_of(described),
        pieces=pieces,
        kinds=kinds,
        merges=[] if spelt else merges,
        scores=[scores.get(piece, -1e6 if kind == NORMAL else 0.0) for piece, kind in zip(pieces, kinds, strict=True)]
        if spelt
        else [],
        start=tokenizer.start,
        eot=tokenizer.eot,
        own_name=bool(tokenizer.end_of_text),
    )
