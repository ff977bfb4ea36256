"""A file's content in blocks, decompressed where its first bytes say that it is compressed: gzip, xz, zstd."""

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from isoflop.data.corpus import SourceFile
from isoflop.errors import UserError

PIECE = 64 * 1024  # plain text longer than this is cut at paragraph ends
BLOCK = 1 << 20
SIP = 8 * 1024
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
COMPRESSION_ENDINGS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
XZ_MEMORY = 512 * 2**20  # bytes; xz -9 needs 65 MiB. A header of a few bytes can ask for 4 GiB
ZSTD_WINDOW = 128 * 2**20  # bytes; zstd's own limit, and --long=27. A larger one, up to 2 GiB, only in a large file
ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))


def decompress(raw: BinaryIO, file: SourceFile) -> Iterator[bytes]:
    """The file's content in blocks, decompressed if its first bytes say that it is compressed.

    Raises:
        UserError: for a truncated or damaged file, or an ending that promises a compression that is not there.
    """
    start = raw.read(6)
    raw.seek(0)
    found = next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), "")
    if start.startswith(ZSTD_SKIPPABLE):
        found = "zstd"
    promised = COMPRESSION_ENDINGS.get(Path(file.shown).suffix.lower(), "")
    if promised and not found:
        raise UserError(f"{file.shown} is not a {promised} file, or its beginning is damaged; fetch it again")
    try:
        if found == "zstd":
            yield from zstd_blocks(raw, file.size)
        elif found == "xz":
            yield from xz_blocks(raw)
        else:
            opened: Any = gzip.GzipFile(fileobj=InSips(raw)) if found else raw
            while block := opened.read(BLOCK):
                yield block
    except EOFError:
        raise UserError(f"{file.shown} is truncated: its {found} data stops before the end; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(f"{file.shown} is damaged: its {found} data cannot be read ({error}); fetch it again") from None


class InSips:
    """A file that gives at most SIP bytes at a time, so that its place is near what has been decompressed: Python's own
    readers take up to 128 KiB ahead, which is a megabyte of text that the survey would not count."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.seek = raw.seek

    def read(self, size: int = -1) -> bytes:
        return self.raw.read(SIP if size < 0 else min(size, SIP))


def xz_blocks(raw: BinaryIO) -> Iterator[bytes]:
    """Stream by stream, since Python's own reader of .xz has no limit of memory. Zeros may stand between streams."""
    decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
    data, ended = b"", False
    while True:
        if decompressor.eof:
            data = (decompressor.unused_data or raw.read(SIP)).lstrip(b"\0")
            while not data and (data := raw.read(SIP)):
                data = data.lstrip(b"\0")
            if not data:
                return
            decompressor, ended = lzma.LZMADecompressor(memlimit=XZ_MEMORY), False
        elif decompressor.needs_input:
            data = raw.read(SIP)
            ended = not data
        if ended:
            raise EOFError
        if block := decompressor.decompress(data, BLOCK):
            yield block
        data = b""


def zstd_blocks(raw: BinaryIO, size: int) -> Iterator[bytes]:
    """Frame by frame, since zstandard's own stream reader takes a truncated frame for a whole one.

    1 KiB at a time bounds what comes out at once: a zstd block is at least 4 bytes and holds at most 128 KiB.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=min(2**31, max(ZSTD_WINDOW, 64 * size)))
    frame, pending = None, bytearray()
    while data := raw.read(1024):
        while data:
            frame = frame or decompressor.decompressobj()
            pending += frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
        if len(pending) >= BLOCK:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)
    if frame is not None:
        raise EOFError


def peekable(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same stream with at least one piece (64 KiB) in its first block, which is what text is judged by."""
    first = bytearray()
    for block in blocks:
        first += block
        if len(first) >= PIECE:
            break
    yield bytes(first)
    yield from blocks
