"""DataConfig: the settings of data preparation."""

from dataclasses import dataclass
from typing import Annotated, Any

from isoflop.config import Derived
from isoflop.data.corpus import Source
from isoflop.data.encodings import check_encoding, is_utf8_name
from isoflop.data.kinds import find_kind, quoted
from isoflop.data.reading import AUTO, FORMATS, Reading
from isoflop.data.walk import printable
from isoflop.errors import UserError

BEFORE_SPLIT = frozenset(
    [
        "sources",
        "heldout",
        "tokenizer",
        "vocab_size",
        "text_column",
        "heldout_fraction",
        "max_train_bytes",
        "strict",
        "seed",
        "workers",
        "path",
    ]
)


@dataclass(frozen=True)
class DataConfig:
    """The text and the tokenizer. All fields except `workers` are part of the key of the prepared data."""

    sources: Annotated[
        tuple[str, ...],
        "files, folders, globs or `-`, as [name=]PATH[@COLUMN][:WEIGHT]; none: Python's own standard library",
    ] = ()
    heldout: Annotated[tuple[str, ...], "sources that are the held-out text, instead of a split by content hash"] = ()
    tokenizer: Annotated[
        str, Derived(lambda: f"{quoted()} to train one, or the path of a tokenizer.json or of GPT-2's vocab.bpe")
    ] = "bpe"
    vocab_size: Annotated[
        int, Derived(lambda: f"ids of a trained tokenizer, <|endoftext|> included (for tokenizer {quoted()})")
    ] = 1024
    text_column: Annotated[
        str, "the column of records (JSON, parquet, Arrow, CSV) that holds the text, unless a source names its own"
    ] = "text"
    encoding: Annotated[
        str,
        "encoding of text that is not UTF-8 and has no byte order mark, such as latin-1, cp1252, utf-16-le, gb18030; "
        "empty: such text is skipped and counted, and its likely encoding is reported",
    ] = ""
    document_separator: Annotated[
        str,
        "the string between the documents of a plain-text file, such as <|endoftext|> in quotes; empty: a file is one "
        "document",
    ] = ""
    format: Annotated[
        str, "`auto`: detect records, tables and archives by content; `text`: read every file as plain text"
    ] = AUTO
    end_of_text: Annotated[
        str,
        "the token that ends a document in a given tokenizer; empty: the first of the common names",
    ] = ""
    heldout_fraction: Annotated[float, "share of the text held out by content hash, unless held-out text is named"] = (
        0.01
    )
    max_train_bytes: Annotated[int, "prepare a hash-sampled share of about this many bytes of text; 0: all"] = 0
    strict: Annotated[bool, "make every unreadable file or record an error instead of counting it"] = False
    seed: Annotated[int, "seed of the split, the sampled share and the tokenizer's sample"] = 0
    split: Annotated[
        int, "rule of the split: 2: short stretches of documents are held out; 1: whole documents, as in older runs"
    ] = 2
    pair_split: Annotated[
        int,
        "rule of the split of pairs (seq2seq): 2: heldout_fraction of the text, up to 1.8 times that where inputs are "
        "few; 1: up to a tenth of the inputs, as in older runs",
    ] = 2
    workers: Annotated[int, "encoding processes; 0: one per core"] = 0
    path: Annotated[str, "a folder made by `isoflop prepare`, used instead of sources"] = ""

    @classmethod
    def from_older(cls, value: dict[str, Any]) -> dict[str, Any]:
        """A config.json with all older fields and none of the split rules: its data were split by the first rules."""
        return {"split": 1, "pair_split": 1, **value} if value.keys() >= BEFORE_SPLIT else value

    def __post_init__(self) -> None:
        """Replace names that are not UTF-8 by their printable form: JSON cannot hold them."""
        for name in ("sources", "heldout"):
            if not all(map(encodable, getattr(self, name))):
                object.__setattr__(self, name, tuple(map(printable, getattr(self, name))))

    def reading(self, source: Source) -> Reading:
        """How to read the files of a source."""
        return Reading(
            column=source.column or self.text_column,
            encoding="" if is_utf8_name(self.encoding) else self.encoding,
            separator=self.document_separator,
            format=self.format,
        )


def encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check(config: DataConfig) -> None:
    """Refuse settings that are invalid for any corpus.

    Raises:
        UserError: naming the field and its range.
    """
    if config.path and (config.sources or config.heldout):
        raise UserError(f"data.path = {config.path!r} and data sources are both given; name one of them")

    kind = find_kind(config.tokenizer)
    if kind and config.vocab_size < kind.smallest:
        raise UserError(f"data.vocab_size = {config.vocab_size} is too small; {kind.reason}")
    if kind and config.end_of_text:
        raise UserError(
            f"data.end_of_text = {config.end_of_text!r} names a token of a tokenizer that is given, and "
            f"data.tokenizer = {config.tokenizer} is trained; leave it out, or name the tokenizer's file"
        )

    check_encoding(config.encoding)
    if config.format not in FORMATS:
        raise UserError(f"data.format = {config.format!r} is not one of {', '.join(FORMATS)}")
    if config.document_separator.isspace() and "\n" not in config.document_separator:
        raise UserError(
            f"data.document_separator = {config.document_separator!r} is only white space; name a mark or line breaks"
        )

    if not 0.0 < config.heldout_fraction <= 0.5:
        raise UserError(f"data.heldout_fraction = {config.heldout_fraction} is not above 0 and at most 0.5")
    if config.split not in (1, 2):
        raise UserError(f"data.split = {config.split} is not 2, or 1 for the split of older runs")
    if config.pair_split not in (1, 2):
        raise UserError(f"data.pair_split = {config.pair_split} is not 2, or 1 for the split of older runs")
    if config.max_train_bytes < 0:
        raise UserError(f"data.max_train_bytes = {config.max_train_bytes} is negative; 0 means all")
    if config.workers < 0:
        raise UserError(f"data.workers = {config.workers} is negative; 0 means one per core")
    if not config.text_column:
        raise UserError("data.text_column is empty; name the column that holds the text")
