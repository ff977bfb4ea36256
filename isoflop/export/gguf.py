"""Models in GGUF, llama.cpp's file (gguf_file.py reads the file itself).

llama's rows of q and k are in pairs (interleaved rotary), qwen3's in halves. Its architectures fix their activation:
silu in llama and qwen3, GELU by the tanh formula in gpt2.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.export.anatomy import FAMILIES, Anatomy, anatomy_of
from isoflop.export.bundle import Bundle, gather, spread
from isoflop.export.fields import Fields
from isoflop.export.gguf_file import Stored, load, mapped, need_package, read_header, same
from isoflop.export.names import GGUF_WHOLE, QKV, Key, Names, gguf_blocks
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

FILE_NAME = "model.gguf"


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp makes of a family: the names of its tensors, and the activation, in which there is no choice."""

    names: Names
    activation: str


GGUF: dict[str, Architecture] = {
    "llama": Architecture(Names("blk.{n}.", GGUF_WHOLE, gguf_blocks(turned=True)), "silu"),
    "qwen3": Architecture(Names("blk.{n}.", GGUF_WHOLE, gguf_blocks(turned=False)), "silu"),
    "gpt2": Architecture(
        Names("blk.{n}.", GGUF_WHOLE, (Key("attn_qkv", QKV), *gguf_blocks(turned=False)[3:])), "gelu_tanh"
    ),
}


def read_gguf(path: Path, tokenizer: str = "", context: int = 0) -> Bundle:
    """The model in a GGUF file.

    Args:
        tokenizer: a tokenizer's text to use in place of the one in the file.
        context: see bundle.gather.

    Raises:
        UserError: for an architecture or a feature that our blocks do not have, or a damaged file.
    """
    with mapped(path) as data:
        values, stored = read_header(data, str(path))
        fields = Fields(values, str(path))
        anatomy = read_metadata(fields, stored)
        if (
            "output.weight" in stored
            and not is_rotary(anatomy.family)
            and same(data, stored, "output.weight", "token_embd.weight")
        ):
            anatomy = Anatomy(**{**anatomy.__dict__, "tied": True})  # llama.cpp's converter writes it twice
            stored = {name: tensor for name, tensor in stored.items() if name != "output.weight"}
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        names = GGUF[anatomy.family].names
        config, weights = gather(
            anatomy, names, shapes, lambda name: load(data, stored[name], str(path)), str(path), context
        )
        text = tokenizer or read_tokenizer(fields)
    return Bundle(config, weights, text, f"gguf {anatomy.family}")


def read_metadata(fields: Fields, stored: dict[str, Stored]) -> Anatomy:
    """The header as an Anatomy.

    Raises:
        UserError: naming the architecture or the feature that our blocks do not have.
    """
    family = fields.text("general.architecture")
    if family not in GGUF:
        raise UserError(f"{fields.origin}: architecture {family[:80]!r} is not one of {', '.join(GGUF)}")

    def key(name: str) -> str:
        return f"{family}.{name}"

    fields.refuse_unless(key("rope.scaling.type"), "none")
    fields.refuse_unless(key("expert_count"), 0)
    d_model, heads = fields.size(key("embedding_length")), fields.size(key("attention.head_count"))
    head_dim = fields.size(key("attention.key_length"), max(1, d_model // heads))
    kv_heads = fields.size(key("attention.head_count_kv"), heads)
    fields.refuse_unless(key("attention.value_length"), head_dim)
    if heads % kv_heads or (not is_rotary(family) and d_model != heads * head_dim):
        raise UserError(f"{fields.origin}: {heads} heads, {kv_heads} for keys, do not fit a width of {d_model}")
    if "token_embd.weight" not in stored:
        raise UserError(f"{fields.origin} has no tensor 'token_embd.weight'")
    rotary = is_rotary(family)
    if rotary:
        fields.refuse_unless(key("rope.dimension_count"), head_dim)
    norm = "attention.layer_norm_rms_epsilon" if rotary else "attention.layer_norm_epsilon"
    return Anatomy(
        family=family,
        vocab_size=stored["token_embd.weight"].shape[0],
        context=fields.size(key("context_length")),
        layers=fields.size(key("block_count")),
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=fields.size(key("feed_forward_length")),
        activation=GGUF[family].activation,
        eps=single(fields.number(key(norm))),
        base=single(fields.number(key("rope.freq_base"), 10_000.0)) if rotary else 0.0,
        attention_bias=not rotary,
        mlp_bias=not rotary,
        tied="output.weight" not in stored,
    )


def is_rotary(family: str) -> bool:
    """Whether a family is llama's kind: rotary positions, RMS norms and no biases; else it is GPT-2's."""
    return FAMILIES[family].position == "rotary"


def single(value: float) -> float:
    """The shortest decimal that is this number in float32: 9.99999974e-06 was written as 1e-5."""
    return float(str(np.float32(value)))


def read_tokenizer(fields: Fields) -> str:
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
            raise UserError(f"{fields.origin}: its tokenizer puts no space ahead of a text, which ours of that kind do")
        scores = fields.list_of("tokenizer.ggml.scores", float)
        if len(scores) < len(pieces):
            raise UserError(f"{fields.origin}: its tokenizer has {len(pieces)} tokens and {len(scores)} scores")
        return sentencepiece(pieces, scores, kinds, first, fields.origin)
    if kind != "gpt2":
        raise UserError(f"{fields.origin}: a tokenizer of kind {kind[:80]!r} is not read; gpt2 and llama are")
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise UserError(f"{fields.origin}: its tokenizer has two tokens that read the same")
    added = {p: kind == CONTROL for p, kind in zip(pieces, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)}
    merges = fields.list_of("tokenizer.ggml.merges", str)
    cut = fields.text("tokenizer.ggml.pre", "default")
    return byte_level(vocabulary, merges, cut, added, fields.origin, first)


def write_gguf(bundle: Bundle, folder: Path, name: str) -> str:
    """Write a bundle as model.gguf, in float32, into an existing folder.

    Args:
        name: of the model, for those who list it.

    Returns:
        The architecture.

    Raises:
        UserError: naming the block that no architecture of theirs has.
    """
    anatomy = anatomy_of(bundle.config, tuple(GGUF), "a GGUF model")
    family = anatomy.family
    if anatomy.activation != GGUF[family].activation:
        raise UserError(
            f"model.feed_forward.activation = {anatomy.activation} cannot be written as a GGUF model: {family} has "
            f"{GGUF[family].activation}"
        )
    if is_rotary(family) and (anatomy.attention_bias or anatomy.mlp_bias):
        slot = "attention" if anatomy.attention_bias else "feed_forward"
        raise UserError(f"model.{slot}.bias = true cannot be written as a GGUF model: {family} has no biases")
    package = need_package("GGUF is written by the gguf package")
    described = tokenizer_values(bundle)
    writer = package.GGUFWriter(folder / FILE_NAME, family)
    writer.add_name(name)
    writer.add_file_type(package.LlamaFileType.ALL_F32)
    writer.add_vocab_size(anatomy.vocab_size)
    writer.add_context_length(anatomy.context)
    writer.add_embedding_length(anatomy.d_model)
    writer.add_block_count(anatomy.layers)
    writer.add_feed_forward_length(anatomy.d_ff)
    writer.add_head_count(anatomy.heads)
    if not is_rotary(family):
        writer.add_layer_norm_eps(anatomy.eps)
    else:
        writer.add_head_count_kv(anatomy.kv_heads)
        writer.add_key_length(anatomy.head_dim)
        writer.add_value_length(anatomy.head_dim)
        writer.add_layer_norm_rms_eps(anatomy.eps)
        writer.add_rope_freq_base(anatomy.base)
        writer.add_rope_dimension_count(anatomy.head_dim)
    described.add_to(writer)
    for tensor_name, tensor in spread(bundle, anatomy, GGUF[family].names).items():
        writer.add_tensor(tensor_name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return family


@dataclass(frozen=True)
class TokenizerValues:
    """What the header says of a tokenizer. `pieces` are as many as the model has rows."""

    model: str
    cut: str
    pieces: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    start: int
    eot: int
    begins: bool

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
        writer.add_add_bos_token(self.begins)
        writer.add_add_space_prefix(self.model == "llama")


def tokenizer_values(bundle: Bundle) -> TokenizerValues:
    """A tokenizer.json in GGUF's words.

    Raises:
        UserError: for a tokenizer that is neither byte-level BPE nor SentencePiece BPE with byte fallback.
    """
    described = json.loads(bundle.tokenizer)
    tokenizer = Tokenizer.from_json(bundle.tokenizer)
    model = described["model"]
    if model.get("type") != "BPE":
        raise UserError(f"a tokenizer of kind {model.get('type')} cannot be written as a GGUF model; BPE can")
    spelt = bool(model.get("byte_fallback"))
    special = {token["content"]: bool(token["special"]) for token in described.get("added_tokens") or []}
    pieces = [f"[PAD{i}]" for i in range(bundle.config.vocab_size)]
    kinds = [UNUSED] * len(pieces)
    for piece, i in tokenizer.vocabulary.items():
        pieces[i] = piece
        byte = spelt and len(piece) == 6 and piece.startswith("<0x")
        unknown = piece == model.get("unk_token")
        kinds[i] = UNKNOWN if unknown else BYTE if byte else NORMAL
        if piece in special and not unknown:
            kinds[i] = CONTROL if special[piece] else USER_DEFINED
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
        begins=tokenizer.begins,
    )
