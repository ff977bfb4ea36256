"""llama2.c's files: a .bin of float32 after a header of seven integers, and a tokenizer.bin of pieces with scores.

The original layout (its export.py, version 0): the tensors of one kind of all layers together, queries and keys for
interleaved rotary pairs, two tables of rotary angles, which newer readers compute instead. A negative vocabulary means
an untied head. Documents are separated by `<s>`, which is therefore our end of text.

Its program does not split text before merging pieces. Byte-level BPE does, so it cannot be written as a tokenizer.bin:
only models imported with a SentencePiece tokenizer can be exported.
"""

import json
import math
import mmap
import struct
from pathlib import Path

import torch
from torch import Tensor

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.export.anatomy import Anatomy
from isoflop.export.bundle import Bundle, gather, spread
from isoflop.export.fields import Fields
from isoflop.export.fit import Limits, anatomy_of
from isoflop.export.names import LLAMA2C
from isoflop.export.vocabulary import (
    BYTE,
    CONTROL,
    LONGEST_PIECE,
    NORMAL,
    SPACE,
    UNKNOWN,
    scores_of,
    sentencepiece,
)
from isoflop.model.blocks.position import angles
from isoflop.untrusted import read_bytes

HEADER = struct.Struct("<7i")
VERSIONED = 0x616B3432  # "ak42": the later layouts
BEGIN, END = 1, 2
UNREACHED = -1e6  # the score of a piece that is not the result of a merge
EPS, BASE = 1e-5, 10_000.0  # fixed in its program
TITLE = "a llama2.c model"
FILE_NAME, PIECES_NAME = "model.bin", "tokenizer.bin"
LIMITS = {
    "llama": Limits(("silu",), attention_bias=False, mlp_bias=False, scaling=False, eps=EPS, base=BASE, even_heads=True)
}


def read_bin(path: Path, tokenizer: str = "", context: int = 0) -> Bundle:
    """The model of a llama2.c .bin.

    Args:
        tokenizer: the text of its tokenizer as JSON (see `read_pieces`).
        context: see bundle.gather.

    Raises:
        UserError: if the file's size is not the one that its header gives.
    """
    if not tokenizer:
        raise UserError(f"{path} does not contain a tokenizer; name one: --tokenizer tokenizer.bin")

    anatomy = read_header(path)
    layers, D = anatomy.layers, anatomy.d_model
    offset = HEADER.size
    places: dict[str, tuple[int, tuple[int, ...]]] = {}

    def place(name: str, shape: tuple[int, ...]) -> None:
        nonlocal offset
        places[f"{name}.weight"] = (offset, shape)
        offset += 4 * math.prod(shape)

    size = path.stat().st_size
    if size < 4 * layers * 2 * D:  # before a false header can create that many names
        raise wrong_size(path, size)
    place("embedding", (anatomy.vocab_size, D))
    for name, shape in in_blocks(anatomy):
        for n in range(layers):
            place(f"blocks.{n}.{name}", shape)
    place("norm", (D,))
    offset += 4 * anatomy.context * anatomy.head_dim  # cosines and sines
    if not anatomy.tied:
        place("head", (anatomy.vocab_size, D))
    if size != offset:
        raise wrong_size(path, size, offset)

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:

        def load(name: str) -> Tensor:
            start, shape = places[name]
            return torch.frombuffer(bytearray(data[start : start + 4 * math.prod(shape)]), dtype=torch.float32).view(
                shape
            )

        shapes = {name: shape for name, (_, shape) in places.items()}
        config, weights = gather(anatomy, LLAMA2C, shapes, load, str(path), context)
    return Bundle(config, weights, tokenizer, "llama2.c")


def in_blocks(anatomy: Anatomy) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a block's tensors, in order."""
    D, F, kv = anatomy.d_model, anatomy.d_ff, anatomy.kv_heads * anatomy.head_dim
    return [
        ("wiring.norms.0", (D,)),
        ("attention.q", (D, D)),
        ("attention.k", (kv, D)),
        ("attention.v", (kv, D)),
        ("attention.out", (D, D)),
        ("wiring.norms.1", (D,)),
        ("feed_forward.gate", (F, D)),
        ("feed_forward.down", (D, F)),
        ("feed_forward.up", (F, D)),
    ]


def read_header(path: Path) -> Anatomy:
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise wrong_size(path, len(head))
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise UserError(f"{path} is a pickle, which isoflop never opens; save the model as safetensors first")
    if struct.unpack("<I", head[:4])[0] == VERSIONED:
        raise UserError(f"{path} is a later layout of llama2.c; export it as version 0 or to a Hugging Face folder")

    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
    header = dict(zip(names, HEADER.unpack(head), strict=True))
    fields = Fields({**header, "vocab_size": abs(header["vocab_size"])}, f"{path} (read as llama2.c's)")
    D, heads, kv_heads = (fields.size(name) for name in ("dim", "n_heads", "n_kv_heads"))
    if D % heads or heads % kv_heads or D // heads % 2:
        raise UserError(
            f"{fields.origin}: d_model {D} with {heads} heads and {kv_heads} key-value heads is not a llama2.c model"
        )

    return Anatomy(
        family="llama",
        vocab_size=fields.size("vocab_size"),
        context=fields.size("seq_len"),
        layers=fields.size("n_layers"),
        d_model=D,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=D // heads,
        d_ff=fields.size("hidden_dim"),
        activation="silu",
        eps=EPS,
        base=BASE,
        tied=header["vocab_size"] > 0,
    )


def wrong_size(path: Path, size: int, expected: int | None = None) -> UserError:
    reason = f"its header gives {expected:,}" if expected else "that is too few for its header"
    return UserError(f"{path} is not a llama2.c model: it has {size:,} bytes and {reason}")


def read_pieces(path: Path) -> str:
    """tokenizer.bin as a tokenizer.json. Pieces have no kinds: ids 0, 1, 2 are unknown, begin and end, then the bytes.

    Raises:
        UserError: for a file that ends within a piece, or lacks these pieces.
    """
    data = read_bytes(path)
    pieces: list[str] = []
    scores: list[float] = []
    offset = 4  # after the length of the longest piece, which is not needed

    try:
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            offset += 8
            if not 0 < length <= LONGEST_PIECE or offset + length > len(data):
                raise ValueError(f"piece {len(pieces)} is {length} bytes long")
            pieces.append(data[offset : offset + length].decode("utf-8").replace(" ", SPACE))
            scores.append(score)
            offset += length
    except (struct.error, ValueError) as error:
        raise UserError(f"{path} is not a llama2.c tokenizer ({error})") from None

    if len(pieces) < 259 or pieces[3] != "<0x00>":
        raise UserError(f"{path} is not a llama2.c tokenizer: pieces 3 to 258 are not the bytes")
    pieces[BEGIN] = "<s>"
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) - 259)]
    return sentencepiece(pieces, scores, kinds, BEGIN, str(path))


def write_llama2c(bundle: Bundle, folder: Path) -> str:
    """Write a bundle as model.bin and tokenizer.bin into an existing folder.

    Returns:
        The architecture.

    Raises:
        UserError: naming the block, or the tokenizer, that llama2.c does not support.
    """
    require_sentencepiece(bundle.tokenizer)  # first: without it no change of the configuration helps
    anatomy = anatomy_of(bundle.config, LIMITS, TITLE)
    pieces = pieces_of(bundle.tokenizer, anatomy.vocab_size)
    tensors = spread(bundle, anatomy, LLAMA2C)

    vocabulary = anatomy.vocab_size if anatomy.tied else -anatomy.vocab_size
    sizes = (anatomy.d_model, anatomy.d_ff, anatomy.layers, anatomy.heads, anatomy.kv_heads, vocabulary)
    tables = angles(torch.empty(anatomy.context, anatomy.head_dim), anatomy.base)
    names = ["embedding.weight"]
    names += [f"blocks.{n}.{name}.weight" for name, _ in in_blocks(anatomy) for n in range(anatomy.layers)]
    with (folder / FILE_NAME).open("wb") as file:
        file.write(HEADER.pack(*sizes, anatomy.context))
        for tensor in [*(tensors[name] for name in (*names, "norm.weight")), tables.cos(), tables.sin()]:
            file.write(tensor.contiguous().numpy().tobytes())
        if not anatomy.tied:
            file.write(tensors["head.weight"].numpy().tobytes())
    (folder / PIECES_NAME).write_bytes(pieces)
    return "llama"


def require_sentencepiece(text: str) -> None:
    """Raises UserError for a tokenizer.json of another kind than llama2.c's program has."""
    model = json.loads(text)["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise UserError(
            "this run's tokenizer cannot be written as llama2.c's: its program has SentencePiece's, and this one "
            "splits text before it merges; export --to gguf, or train with one of that kind: --set data.tokenizer=FILE"
        )


def pieces_of(text: str, rows: int) -> bytes:
    """A tokenizer.json as a tokenizer.bin.

    Raises:
        UserError: for a tokenizer that is not SentencePiece's, has other special tokens or ids than the program
            assumes, or fewer pieces than the model has rows.
    """
    require_sentencepiece(text)
    tokenizer = Tokenizer.from_json(text)
    pieces = {number: piece for piece, number in tokenizer.vocabulary.items()}
    ordered = [pieces.get(i, f"[PAD{i}]") for i in range(rows)]
    if ordered[3:259] != [f"<0x{b:02X}>" for b in range(256)] or tokenizer.start != BEGIN:
        raise UserError(
            "this run's tokenizer cannot be written as llama2.c's: its program takes id 1 for the beginning of a text "
            "and 3 to 258 for the bytes; export --to gguf"
        )

    described = json.loads(text)
    scores = scores_of(described)
    special = {token["content"] for token in described.get("added_tokens") or [] if token["special"]}
    written, longest = [], 1
    for piece in ordered:
        # Text must not give a special piece: begin and end of a document are between line ends, as in its own files.
        spelt = f"\n{piece}\n" if piece in special and piece != "<unk>" else piece.replace(SPACE, " ")
        raw = spelt.encode()
        longest = max(longest, len(raw))
        written.append(struct.pack("<fi", scores.get(piece, UNREACHED), len(raw)) + raw)
    return struct.pack("<i", longest) + b"".join(written)
