"""Imports and exports weights. Reading detects the format from the path; writing reads its result back and compares.

formats        the formats, and which of them a configuration fits       fit     which configurations a format can hold
anatomy        a model in the terms that all formats share               names   each format's names of our tensors
architectures  Hugging Face's, one row each, and their config.json       bundle  configuration, weights and tokenizer
huggingface    folders of config.json and safetensors                    gguf    llama.cpp's models
llama2c        llama2.c's .bin                                           gguf_file, gguf_tokenizer  parts of a GGUF file
vocabulary     conversion of tokenizers                                  rope    Llama 3's RoPE scaling in GGUF
own_code       Hugging Face folders with modeling code of our own        modeling  that code
fields         a header's values, checked
"""

import secrets
from dataclasses import replace
from pathlib import Path

from isoflop.data.tokenizer import NoEndOfText, Tokenizer
from isoflop.data.tokenizer import read_text as read_tokenizer_text
from isoflop.errors import UserError
from isoflop.export.bundle import Bundle, compare
from isoflop.export.formats import FORMATS, Outlook, needs_own_code, outlook
from isoflop.export.gguf import read_gguf
from isoflop.export.huggingface import read_folder
from isoflop.export.llama2c import read_bin, read_pieces
from isoflop.export.own_code import NOTES as OWN_CODE_NOTES
from isoflop.untrusted import open_regular

__all__ = [
    "FORMATS",
    "OWN_CODE_NOTES",
    "Bundle",
    "Outlook",
    "check_target",
    "compare",
    "needs_own_code",
    "outlook",
    "read",
    "write",
]


def read(path: Path, tokenizer: str = "", context: int = 0, end_of_text: str = "") -> Bundle:
    """The model at a path: a Hugging Face folder, a .gguf, or a llama2.c .bin.

    Args:
        tokenizer: a file with the tokenizer to use instead of the model's own: tokenizer.json, GPT-2's vocab.bpe, or
            llama2.c's tokenizer.bin. For a .bin the default is the tokenizer.bin next to it.
        context: positions to keep; 0: all, but at most 8,192 with rotary positions.
        end_of_text: the token that ends a document; "": the first of the common names, else the one that the model's
            own files name.

    Raises:
        UserError: if the path does not exist or is none of these, or the model cannot be expressed with our blocks.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; name a Hugging Face folder, a .gguf or a llama2.c .bin")

    tokenizer_text = read_tokenizer_file(Path(tokenizer)) if tokenizer else ""
    try:
        bundle = read_kind(path, tokenizer_text, context)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None

    try:
        used = Tokenizer.from_json(bundle.tokenizer, tokenizer or f"the tokenizer of {path}", end_of_text)
    except NoEndOfText as error:
        raise UserError(f"{error.problem}: name its own with --end-of-text '{error.example}'") from None
    if end_of_text:
        bundle = replace(bundle, tokenizer=used.to_json())
    ids = used.vocab_size
    if ids > bundle.config.vocab_size:
        raise UserError(
            f"the tokenizer has {ids} ids and the model {bundle.config.vocab_size}: they do not belong together"
        )
    return bundle


def read_kind(path: Path, tokenizer: str, context: int) -> Bundle:
    """The model at a path, with the reader of its format."""
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1 and not (path / "config.json").is_file():
            return read_gguf(files[0], tokenizer, context)
        return read_folder(path, tokenizer, context)
    with open_regular(path) as file:
        if file.read(4) == b"GGUF":
            return read_gguf(path, tokenizer, context)
    if path.suffix != ".bin":
        folder = f"; name the folder, {path.parent}" if (path.parent / "config.json").is_file() else ""
        raise UserError(f"{path} is neither a Hugging Face folder, a GGUF file nor a llama2.c .bin{folder}")
    adjacent = path.with_name("tokenizer.bin")
    if not tokenizer and adjacent.is_file() and adjacent != path:
        tokenizer = read_pieces(adjacent)
    return read_bin(path, tokenizer, context)


def read_tokenizer_file(path: Path) -> str:
    """The text of a tokenizer.json, or what another file of a tokenizer gives in that form."""
    if path.suffix == ".bin" and path.is_file():
        return read_pieces(path)
    text = read_tokenizer_text(path)
    return text if text.lstrip().startswith("{") else Tokenizer.from_gpt2_merges(path).to_json()


def check_target(target: str, own_code: bool = False) -> None:
    """Raise UserError for a format that is not one of FORMATS, or that has no place for modeling code."""
    if target not in FORMATS:
        raise UserError(f"--to {target} is not one of {', '.join(FORMATS)}")
    if own_code and FORMATS[target].write_own is None:
        places = " or ".join(name for name, row in FORMATS.items() if row.write_own is not None)
        raise UserError(f"--own-code does not go with --to {target}, which holds no code: use --to {places}")


def write(bundle: Bundle, target: str, folder: Path, name: str, own_code: bool = False) -> tuple[str, float]:
    """Write a bundle into an existing empty folder, read it back, and compare.

    Args:
        target: one of FORMATS.
        name: of the model.
        own_code: use isoflop's own modeling code also if an architecture of the format fits.

    Returns:
        The architecture of the file, and the largest difference between the logits before and after, in units of the
        largest logit.

    Raises:
        UserError: naming the block that the format cannot express; or if the model that is read back differs.
    """
    check_target(target, own_code)
    row = FORMATS[target]
    if row.write_own is not None and (own_code or needs_own_code(bundle.config, target)):
        architecture = row.write_own(bundle, folder)
    else:
        architecture = row.write(bundle, folder, name)
    open_to_readers(folder)
    return architecture, compare(bundle, row.read(folder, bundle.config.context), ends=row.ends)


def open_to_readers(folder: Path) -> None:
    """Give all files in a folder the mode of new files: some libraries create files that only their owner can read."""
    probe = folder / f".{secrets.token_hex(4)}.tmp"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)
