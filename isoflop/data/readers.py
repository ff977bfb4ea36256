"""Reads the documents of one file, of any format, in constant memory. The format is detected by content, not by name.

    decompress: gzip, bzip2, xz, zstd -> formats: detect -> text · json_records · tables · columnar · archives

Documents are UTF-8 bytes, with newlines exactly as in the file. Reading never executes code from a file, and everything
that is not read is counted.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from isoflop.data.archives import tar_members, zip_members
from isoflop.data.columnar import arrow_documents, parquet_documents, spooled
from isoflop.data.corpus import SourceFile
from isoflop.data.decompress import Peekable, compression_of, decompress, peekable
from isoflop.data.encodings import to_utf8
from isoflop.data.formats import Format, ending_of, format_of, plain_text_note
from isoflop.data.json_records import TextColumn, json_documents, jsonl_documents
from isoflop.data.reading import AUTO, Reading
from isoflop.data.tables import table_documents
from isoflop.data.tally import Tally
from isoflop.data.text import Separators, record_separator_note, text_documents
from isoflop.errors import DiskError, UserError

OnProgress = Callable[[int], None] | None

SEPARATES_TEXT = "each of its records is one document: data.document_separator splits plain text only"


@dataclass(frozen=True)
class Opened:
    """A file or a member of an archive, with its content and its format.

    Attributes:
        raw: its bytes as stored.
        content: its bytes after decompression, in blocks.
        compression: "" if it is not compressed.
        size: bytes of a member's content; -1 for a file that is not in an archive.
    """

    file: SourceFile
    raw: Peekable
    content: Iterator[bytes]
    format: Format
    compression: str
    size: int

    @property
    def inside(self) -> bool:
        """Whether it is a member of an archive."""
        return self.size >= 0


def read_or_skip(file: SourceFile, how: Reading, tally: Tally, on_progress: OnProgress = None) -> Iterator[bytes]:
    """`read_documents`, except that the remainder of a file that cannot be read is counted as skipped rather than
    refused, unless strict."""
    position = 0

    def at(n: int) -> None:
        nonlocal position
        position = n
        if on_progress:
            on_progress(n)

    before = tally.pieces
    try:
        yield from read_documents(file, how, tally, at)
    except DiskError:
        raise
    except UserError as error:
        if tally.strict:
            raise
        tally.failure = tally.failure or str(error)
        reason = str(error).removeprefix(f"{file.shown} ")
        if tally.pieces > before:
            tally.skip(file.shown, reason, max(0, file.size - position), whole=True, what="file end")
        else:
            tally.skip(file.shown, reason, file.size, whole=True)


def read_documents(
    file: SourceFile, how: Reading | str, tally: Tally, on_progress: OnProgress = None
) -> Iterator[bytes]:
    """The documents of a file.

    Args:
        how: a Reading, or only the name of the text column.
        on_progress: called with the number of bytes on disk that have been read.

    Raises:
        UserError: for a damaged or truncated file, or if no record has the text column.
    """
    how = Reading(column=how) if isinstance(how, str) else how

    try:
        with file.path.open("rb") as raw:
            for document in documents_of(raw, file, how, tally, on_progress):
                if not document or document.isspace():
                    tally.empty += 1
                    continue
                tally.pieces += 1
                tally.used_bytes += len(document)
                yield document
    except OSError as error:
        reason = (error.strerror or str(error)).partition("\n")[0]
        raise UserError(f"{file.shown} cannot be read: {reason}") from error


def documents_of(
    raw: Peekable, file: SourceFile, how: Reading, tally: Tally, on_progress: OnProgress, size: int = -1
) -> Iterator[bytes]:
    """The documents of a file, or of a member of an archive, whose content has `size` bytes."""
    compression = compression_of(raw)
    blocks = peekable(decompress(raw, file))
    first = next(blocks, b"")
    detected = format_of(file, first, how, compression, inside=size >= 0)
    opened = Opened(file, raw, with_progress(first, blocks, raw, on_progress), detected, compression, size)

    if detected.kind in ("zip", "tar"):
        yield from documents_of_archive(opened, how, tally, on_progress)
    elif detected.kind in ("parquet", "arrow", "arrow stream"):
        yield from noting_separators(documents_of_columns(opened, how, tally, on_progress), file, tally)
    elif detected.kind == "text":
        yield from documents_of_text(opened, how, tally)
    else:
        yield from noting_separators(documents_of_records(opened, how, tally), file, tally)


def documents_of_text(opened: Opened, how: Reading, tally: Tally) -> Iterator[bytes]:
    """The documents of a plain text; none of a file that is not text, which is skipped and counted."""
    file, reason = opened.file, opened.format.reason
    content = decoded(opened, tally)
    if not reason and how.format == AUTO and (note := plain_text_note(ending_of(file.shown))):
        tally.note(file.shown, note)
    yield from text_documents(content, file, how, tally, reason, opened.format.encoding or "UTF-8")


def documents_of_records(opened: Opened, how: Reading, tally: Tally) -> Iterator[bytes]:
    """The documents of JSON records and tables."""
    file, detected = opened.file, opened.format
    content = decoded(opened, tally)
    if how.separator:
        tally.note(file.shown, SEPARATES_TEXT)
    column = TextColumn(file, how.column, tally, detected.promised, detected.hint)
    if detected.kind == "jsonl":
        yield from jsonl_documents(content, column)
    elif detected.kind == "json":
        yield from json_documents(content, column)
    else:
        assert detected.table is not None
        yield from table_documents(content, detected.table, column)


def decoded(opened: Opened, tally: Tally) -> Iterator[bytes]:
    """The content in UTF-8."""
    encoding = opened.format.encoding
    if not encoding:
        return opened.content
    tally.note(opened.file.shown, f"it was read as {encoding}")
    return to_utf8(opened.content, encoding)


def documents_of_columns(opened: Opened, how: Reading, tally: Tally, on_progress: OnProgress) -> Iterator[bytes]:
    """The documents of parquet and Arrow files. They need random access, so compressed files and members of archives
    are unpacked first."""
    file, kind = opened.file, opened.format.kind

    def documents(raw: BinaryIO, on_progress: OnProgress) -> Iterator[bytes]:
        if kind == "parquet":
            return parquet_documents(raw, file, how.column, tally, on_progress)
        return arrow_documents(raw, file, kind == "arrow stream", how.column, tally, on_progress)

    if how.separator:
        tally.note(file.shown, SEPARATES_TEXT)
    if opened.inside or opened.compression:
        with spooled(opened.content, file, 0 if opened.compression else opened.size) as unpacked:
            yield from documents(unpacked, None)
    else:
        raw = cast(BinaryIO, opened.raw)
        raw.seek(0)
        yield from documents(raw, on_progress)


def documents_of_archive(opened: Opened, how: Reading, tally: Tally, on_progress: OnProgress) -> Iterator[bytes]:
    """The documents of all files in an archive."""
    file = opened.file
    if opened.inside:
        tally.skip(file.shown, "an archive inside an archive; unpack it first", file.size, whole=True)
    elif opened.format.kind == "tar":
        for member in tar_members(opened.content, file, tally):
            yield from documents_of(member.content, member.file, how, tally, None, member.size)
    elif opened.compression:
        with spooled(opened.content, file, 0) as unpacked:
            for member in zip_members(unpacked, file, tally):
                yield from documents_of(member.content, member.file, how, tally, None, member.size)
    else:
        raw = cast(BinaryIO, opened.raw)
        for member in zip_members(raw, file, tally):
            yield from documents_of(member.content, member.file, how, tally, None, member.size)
            if on_progress:
                on_progress(raw.tell())


def noting_separators(documents: Iterator[bytes], file: SourceFile, tally: Tally) -> Iterator[bytes]:
    """The same documents, with a note if they contain the separators that plain-text data sets use."""
    separators = Separators()
    for document in documents:
        separators.look(document)
        yield document
    if separator := separators.found():
        tally.note(file.shown, record_separator_note(separator))


def with_progress(first: bytes, blocks: Iterator[bytes], raw: Any, on_progress: OnProgress) -> Iterator[bytes]:
    """The blocks, with `on_progress` called with the position in the file before each."""
    for block in itertools.chain([first], blocks):
        if on_progress:
            on_progress(raw.tell())
        yield block
