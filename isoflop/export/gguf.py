"""GGUF, llama.cpp's file: a header of typed values, then tensors, perhaps quantised.

The `gguf` package's own reader believes every length that a file states, and a file that lies costs it time and memory
without bound; so the header is walked here, each length checked against what is left of the file. The package undoes
the quantisation, and writes.

llama's rows of q and k are in pairs (interleaved rotary), qwen3's in halves. Its architectures fix their activation:
silu in llama and qwen3, GELU by the tanh formula in gpt2.
"""

import json
import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.export.anatomy import Anatomy, anatomy_of
from isoflop.export.bundle import Bundle, gather, spread
from isoflop.export.fields import Fields
from isoflop.export.names import GGUF
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
from isoflop.untrusted import open_regular

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16, BF16 = 0, 1, 30  # tensor types that need no undoing
MOST_DIMENSIONS = 4
ACTIVATIONS = {"llama": "silu", "qwen3": "silu", "gpt2": "gelu_tanh"}
FILE_NAME = "model.gguf"


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: shape, type, first byte and size in bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


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
            and anatomy.family == "gpt2"
            and same(data, stored, "output.weight", "token_embd.weight")
        ):
            anatomy = Anatomy(**{**anatomy.__dict__, "tied": True})  # llama.cpp's converter writes it twice
            stored = {name: tensor for name, tensor in stored.items() if name != "output.weight"}
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        config, weights = gather(
            anatomy, GGUF[anatomy.family], shapes, lambda name: load(data, stored[name], str(path)), str(path), context
        )
        text = tokenizer or read_tokenizer(fields)
    return Bundle(config, weights, text, f"gguf {anatomy.family}")


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with open_regular(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise UserError(f"{path} is empty") from None
        with data:
            yield data


class Cursor:
    """Reads one value after another; never past the end."""

    def __init__(self, data: mmap.mmap, origin: str) -> None:
        self.data, self.origin, self.at = data, origin, 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise UserError(f"{self.origin} is damaged: at byte {self.at:,} it states more than it holds")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or nested:
            raise UserError(f"{self.origin} is damaged: at byte {self.at:,} there is a value of unknown kind {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            size = struct.calcsize(f"<{SCALARS[kind]}")
            return [item[0] for item in struct.iter_unpack(f"<{SCALARS[kind]}", self.take(count * size))]
        if count > len(self.data) - self.at:  # each takes a byte at least
            self.take(count)
        return [self.value(kind, nested=True) for _ in range(count)]


def read_header(data: mmap.mmap, origin: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Metadata, and the tensors by name.

    Raises:
        UserError: for what is no GGUF, or states more than the file holds.
    """
    cursor = Cursor(data, origin)
    if data[:4] != MAGIC:
        raise UserError(f"{origin} is not a GGUF file")
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise UserError(f"{origin} is GGUF version {version}; 2 and 3 are read, on little-endian machines")
    tensors, values_there = cursor.number("Q"), cursor.number("Q")
    values: dict[str, Any] = {}
    for _ in range(min(values_there, len(data))):
        name = cursor.text()
        values[name] = cursor.value(cursor.number("I"))
    headed: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(min(tensors, len(data))):
        name, dimensions = cursor.text(), cursor.number("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise UserError(f"{origin} is damaged: tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]  # theirs begin with the fastest
        headed.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = Fields(values, origin).size("general.alignment", 32)
    begin = -(-cursor.at // alignment) * alignment
    stored = {}
    for name, shape, kind, offset in headed:
        size = bytes_of(shape, kind, f"{origin}: tensor {name[:80]!r}")
        if name in stored or begin + offset + size > len(data):
            raise UserError(f"{origin} is damaged: tensor {name[:80]!r} is there twice or reaches past its end")
        stored[name] = Stored(shape, kind, begin + offset, size)
    return values, stored


def bytes_of(shape: tuple[int, ...], kind: int, what: str) -> int:
    if kind in (F32, F16, BF16):
        return math.prod(shape) * (4 if kind == F32 else 2)
    package = need_package(f"{what} is quantised")
    try:
        block, size = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise UserError(f"{what} is of type {kind}, which the gguf package does not know") from None
    if shape[-1] % block:
        raise UserError(f"{what} has rows of {shape[-1]}, no multiple of its blocks of {block}")
    return math.prod(shape) // block * size


def load(data: mmap.mmap, tensor: Stored, origin: str) -> Tensor:
    """A tensor in float32, its quantisation undone."""
    raw = np.frombuffer(data, dtype=np.uint8, count=tensor.bytes, offset=tensor.start).copy()
    if tensor.kind in (F32, F16, BF16):
        kinds = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
        return torch.from_numpy(raw).view(kinds[tensor.kind]).view(tensor.shape).float()
    package = need_package(f"{origin} is quantised")
    kind = package.GGMLQuantizationType(tensor.kind)
    rows = raw.reshape(package.quant_shape_to_byte_shape(tensor.shape, kind))
    try:
        values = package.dequantize(rows, kind)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{origin}: quantisation {kind.name} cannot be undone ({str(error)[:80]})") from None
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(tensor.shape)


def same(data: mmap.mmap, stored: dict[str, Stored], one: str, other: str) -> bool:
    a, b = stored.get(one), stored.get(other)
    return a is not None and b is not None and data[a.start : a.start + a.bytes] == data[b.start : b.start + b.bytes]


def need_package(why: str) -> Any:
    try:
        return import_module("gguf")
    except ImportError:
        raise UserError(f"{why}, and the gguf package is not installed: pip install 'isoflop[gguf]'") from None


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
    if heads % kv_heads or (family == "gpt2" and d_model != heads * head_dim):
        raise UserError(f"{fields.origin}: {heads} heads, {kv_heads} for keys, do not fit a width of {d_model}")
    if "token_embd.weight" not in stored:
        raise UserError(f"{fields.origin} has no tensor 'token_embd.weight'")
    rotary = family != "gpt2"
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
        activation=ACTIVATIONS[family],
        eps=single(fields.number(key(norm))),
        base=single(fields.number(key("rope.freq_base"), 10_000.0)) if rotary else 0.0,
        attention_bias=not rotary,
        mlp_bias=not rotary,
        tied="output.weight" not in stored,
    )


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
    if anatomy.activation != ACTIVATIONS[family]:
        raise UserError(
            f"model.feed_forward.activation = {anatomy.activation} cannot be written as a GGUF model: {family} has "
            f"{ACTIVATIONS[family]}"
        )
    if family != "gpt2" and (anatomy.attention_bias or anatomy.mlp_bias):
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
    if family == "gpt2":
        writer.add_layer_norm_eps(anatomy.eps)
    else:
        writer.add_head_count_kv(anatomy.kv_heads)
        writer.add_key_length(anatomy.head_dim)
        writer.add_value_length(anatomy.head_dim)
        writer.add_layer_norm_rms_eps(anatomy.eps)
        writer.add_rope_freq_base(anatomy.base)
        writer.add_rope_dimension_count(anatomy.head_dim)
    described.add_to(writer)
    for tensor_name, tensor in spread(bundle, anatomy, GGUF[family]).items():
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
