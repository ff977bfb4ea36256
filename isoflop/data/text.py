"""Plain text -> documents and pieces, newlines exactly as in the file."""

import re
from collections.abc import Iterable, Iterator

from isoflop.data.corpus import SourceFile
from isoflop.data.decompress import PIECE
from isoflop.data.reading import Reading
from isoflop.data.tally import Tally
from isoflop.data.utf8 import utf8_boundary

LONGEST_PIECE = 4 * PIECE  # if no paragraph ends before
PARAGRAPH_END = re.compile(rb"\n[ \t\r]*\n|\r\r")
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "</s>", "[EOS]")  # as written out in data sets
LOOKED_AT = 16  # pieces or records of a file that are searched for separators
FEWEST_INLINE = 3  # occurrences that count as separators, if none is on a line of its own


def text_documents(
    blocks: Iterable[bytes], file: SourceFile, how: Reading, tally: Tally, reason: str, encoding: str = "UTF-8"
) -> Iterator[bytes]:
    """Pieces of a plain text. Together they are the whole file, except separators of documents and pieces that are not
    valid UTF-8.

    A file whose first 64 KiB is not text (`reason`) is skipped as a whole. An invalid stretch further on costs only its
    own piece, since judging the whole file first would mean reading everything twice.

    Args:
        blocks: of UTF-8; bytes that are invalid in the file's own `encoding` are invalid in them as well.
    """
    if reason:
        tally.skip(file.shown, reason, file.size, whole=True)
        return

    documents = separated(blocks, how.separator.encode()) if how.separator else iter([cut_pieces(blocks)])
    position, separators = 0, Separators()
    for pieces in documents:
        counted = False
        for piece in pieces:
            try:
                piece.decode()
            except UnicodeDecodeError as error:
                reason = f"not valid {encoding} at byte {position + error.start}"
                tally.skip(file.shown, reason, len(piece), False, "piece")
            else:
                if not counted and (position == 0 or how.separator) and not piece.isspace():
                    tally.documents += 1
                    counted = True
                separators.look(piece)
                yield piece
            position += len(piece)

    if position == 0:
        yield b""
    if separator := separators.found():
        tally.note(file.shown, separator_note(separator))


class Separators:
    """Detects separators that data sets write between documents. They are part of the text unless it is split there."""

    def __init__(self) -> None:
        self.inline = dict.fromkeys(SEPARATORS, 0)
        self.alone: set[str] = set()  # those found on a line of their own
        self.pieces = 0

    def look(self, piece: bytes) -> None:
        self.pieces += 1
        if self.pieces > LOOKED_AT:
            return
        for separator in SEPARATORS:
            mark = separator.encode()
            count = piece.count(mark)
            if count:
                self.inline[separator] += count
                if re.search(rb"(?m)^[ \t\r]*" + re.escape(mark) + rb"[ \t\r]*$", piece):
                    self.alone.add(separator)

    def found(self) -> str:
        """The separator of the text, "" for none."""
        likely = [name for name, count in self.inline.items() if name in self.alone or count >= FEWEST_INLINE]
        return max(likely, key=lambda name: self.inline[name], default="")


def separator_note(separator: str) -> str:
    return (
        f"its documents seem to be separated by {separator}, which was read as ordinary text; "
        f"split there with --set 'data.document_separator={separator}'"
    )


def record_separator_note(separator: str) -> str:
    return (
        f"its records contain {separator}, which was read as ordinary text: each record is one document already; "
        "remove the marks from the records, or split the records there"
    )


def separated(blocks: Iterable[bytes], separator: bytes) -> Iterator[Iterator[bytes]]:
    """The pieces of each document between separators, without line ends next to these.

    Each document has to be consumed before the next is requested.
    """
    buffer, ended = bytearray(), False
    source = iter(blocks)

    def document() -> Iterator[bytes]:
        """Blocks up to the next separator."""
        nonlocal ended
        searched, begun = 0, False
        while True:
            at = buffer.find(separator, searched)
            if at >= 0:
                part = bytes(buffer[:at]).rstrip(b"\r\n")
                del buffer[: at + len(separator)]
                yield part if begun else part.lstrip(b"\r\n")
                return

            keep = len(separator) + 64  # the end may be the beginning of a separator, with line ends before it
            if len(buffer) > LONGEST_PIECE + keep:
                part = bytes(buffer[: len(buffer) - keep])
                del buffer[: len(part)]
                yield part if begun else part.lstrip(b"\r\n")
                begun = True

            searched = max(0, len(buffer) - len(separator) + 1)
            block = next(source, None)
            if block is None:
                ended = True
                part = bytes(buffer)
                buffer.clear()
                yield part if begun else part.lstrip(b"\r\n")
                return
            buffer.extend(block)

    while not ended:
        yield cut_pieces(document())


def cut_pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut at the last paragraph end within 64 KiB, else at the first one after it; without one within 256 KiB, at the
    last line end, else between two characters.

    Cuts depend only on the text before them, so that a file to which text is appended keeps its pieces except the last.
    """
    buffer = bytearray()
    for block in blocks:
        buffer += block
        start = 0
        while len(buffer) - start > LONGEST_PIECE:
            end = start + piece_length(buffer[start : start + LONGEST_PIECE])
            yield bytes(buffer[start:end])
            start = end
        del buffer[:start]
    while len(buffer) > PIECE:
        end = piece_length(buffer[:LONGEST_PIECE])
        yield bytes(buffer[:end])
        del buffer[:end]
    if buffer:
        yield bytes(buffer)


def piece_length(window: bytearray) -> int:
    ends = [match.end() for match in PARAGRAPH_END.finditer(window, 0, PIECE)]
    if ends and ends[-1] >= PIECE // 2:
        return ends[-1]
    if later := PARAGRAPH_END.search(window, PIECE):
        return later.end()
    if len(window) < LONGEST_PIECE:
        return len(window)
    line_end = window.rfind(b"\n") + 1
    return line_end if line_end > PIECE else utf8_boundary(window)
