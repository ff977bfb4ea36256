"""FORMATS: the export formats, and which of them a configuration fits.

To add one, add a line here; help, errors and the plan's line on exports follow from it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.export import gguf, huggingface, llama2c, own_code
from isoflop.export.bundle import Bundle
from isoflop.export.fit import Limits, nearest, sets_of
from isoflop.export.gguf_tokenizer import NO_MERGES
from isoflop.export.vocabulary import cut_of
from isoflop.model.config import ModelConfig


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        title: its name in sentences.
        words: its description, for help.
        limits: its restrictions for each family.
        tokenizer: the reason why it cannot hold a tokenizer.json; "" if it can.
        write: (bundle, existing empty folder, name) -> the architecture; raises UserError for a model that the format
            cannot express.
        read: (folder, positions) -> the bundle.
        ends: it records which tokens begin and end a document; else its readers assume them.
        write_own: `write` with modeling code of isoflop's own, for models that none of its architectures fits; None:
            the format has no place for code.
    """

    title: str
    words: str
    limits: Callable[[], Mapping[str, Limits]]
    tokenizer: Callable[[str], str]
    write: Callable[[Bundle, Path, str], str]
    read: Callable[[Path, int], Bundle]
    ends: bool = True
    write_own: Callable[[Bundle, Path], str] | None = None


def read_llama2c(folder: Path, context: int) -> Bundle:
    pieces = llama2c.read_pieces(folder / llama2c.PIECES_NAME)
    return llama2c.read_bin(folder / llama2c.FILE_NAME, pieces, context)


def any_tokenizer(text: str) -> str:
    return ""


def gguf_tokenizer(text: str) -> str:
    described = json.loads(text)
    if described["model"].get("type") != "BPE":
        return f"a tokenizer of kind {described['model'].get('type')}"
    if described["model"].get("byte_fallback"):
        return ""
    if not described["model"].get("merges"):
        return NO_MERGES
    try:
        cut_of(described)
    except UserError as error:
        return str(error)
    return ""


def llama2c_tokenizer(text: str) -> str:
    return "" if json.loads(text)["model"].get("byte_fallback") else "its tokenizers are SentencePiece's"


FORMATS: dict[str, Format] = {
    "hf": Format(
        "Hugging Face",
        "a Hugging Face folder",
        huggingface.limits,
        any_tokenizer,
        lambda bundle, folder, name: huggingface.write_folder(bundle, folder),
        huggingface.read_written,
        write_own=huggingface.write_own,
    ),
    "gguf": Format(
        "GGUF",
        "llama.cpp's file",
        gguf.limits,
        gguf_tokenizer,
        gguf.write_gguf,
        lambda folder, context: gguf.read_gguf(folder / gguf.FILE_NAME, context=context),
    ),
    "llama2c": Format(
        "llama2.c",
        "llama2.c's files",
        lambda: llama2c.LIMITS,
        llama2c_tokenizer,
        lambda bundle, folder, name: llama2c.write_llama2c(bundle, folder),
        read_llama2c,
        ends=False,
    ),
}


@dataclass(frozen=True)
class Outlook:
    """Whether a model can be written in a format.

    Attributes:
        architecture: the one in which it is written; if it cannot be written, the nearest one.
        sets: assignments that would make its configuration possible; empty if it is possible.
        tokenizer: the reason why the format cannot hold its tokenizer; "" if it can.
        own_code: it is written with modeling code of isoflop's own, since no architecture of the format fits.
    """

    architecture: str
    sets: tuple[str, ...] = ()
    tokenizer: str = ""
    own_code: bool = False

    @property
    def possible(self) -> bool:
        return not self.sets and not self.tokenizer


def outlook(config: ModelConfig, tokenizer: str = "") -> dict[str, Outlook]:
    """For each format, whether a GPT of this configuration can be written in it.

    Args:
        tokenizer: the text of its tokenizer.json; "": one that the format can hold.
    """
    outlooks = {}
    for name, row in FORMATS.items():
        architecture, obstacles = nearest(config, row.limits())
        obstacle = row.tokenizer(tokenizer) if tokenizer else ""
        if needs_own_code(config, name):
            outlooks[name] = Outlook(own_code.NAME, (), obstacle, own_code=True)
        else:
            outlooks[name] = Outlook(architecture, tuple(sets_of(obstacles)), obstacle)
    return outlooks


def needs_own_code(config: ModelConfig, target: str) -> bool:
    """Whether a format can hold a model only with isoflop's own modeling code, and has a place for it."""
    row = FORMATS[target]
    if row.write_own is None or own_code.obstacle(config):
        return False
    return bool(nearest(config, row.limits())[1])
