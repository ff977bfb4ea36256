"""Reads the files in a zip or tar archive one after another, in place: nothing is unpacked to disk."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from isoflop.data.corpus import SourceFile
from isoflop.data.tally import Tally
from isoflop.errors import UserError

PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA may need 4 GiB of memory
LARGEST_HEADER = 1 << 20  # bytes of a long name or of attributes in a tar
DOCUMENTS = {  # document formats that are zip files
    "[Content_Types].xml": "a Microsoft Office document; save it as text",
    "mimetype": "an e-book or office document; save it as text",
    "META-INF/MANIFEST.MF": "a Java archive",
    "AndroidManifest.xml": "an Android program",
}
WEIGHTS = ("/data.pkl",)  # the end of a name that only PyTorch's weights have
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


class Content:
    """The content of a member, read sequentially.

    Raises:
        UserError: if the archive is damaged.
    """

    def __init__(self, inner: Any, archive: SourceFile, kind: str) -> None:
        self.inner, self.archive, self.kind = inner, archive, kind

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return bytes(self.inner.read(size))
        except DAMAGE as error:
            raise damaged(self.archive, self.kind, error) from None

    def peek(self, size: int = 0, /) -> bytes:
        try:
            return bytes(self.inner.peek(size))
        except DAMAGE as error:
            raise damaged(self.archive, self.kind, error) from None


@dataclass(frozen=True)
class Member:
    """A file in an archive. `size` is the size of its content, which may itself be a compressed file."""

    file: SourceFile
    content: "Content"
    size: int


def zip_members(raw: BinaryIO, file: SourceFile, tally: Tally) -> Iterator[Member]:
    """The files of a zip in its order, without hidden ones. Files that cannot be read are skipped and counted.

    Raises:
        UserError: for a damaged archive.
    """
    try:
        with zipfile.ZipFile(raw) as archive:
            infos = archive.infolist()
            if kind := document_kind([info.filename for info in infos]):
                tally.skip(file.shown, f"binary, not text ({kind})", file.size, whole=True)
                return

            for info in infos:
                if info.is_dir() or is_hidden(info.filename):
                    continue

                member = member_file(file, info.filename, info.compress_size)
                if info.flag_bits & 1:
                    reason = "encrypted; unpack its archive first: unzip FILE"
                    tally.skip(member.shown, reason, info.compress_size, whole=True)
                elif info.compress_type not in PLAIN_METHODS:
                    reason = f"compressed by method {info.compress_type} of zip, which is not read; unpack it first"
                    tally.skip(member.shown, reason, info.compress_size, whole=True)
                else:
                    with archive.open(info) as content:
                        yield Member(member, Content(content, file, "zip"), info.file_size)
    except DAMAGE as error:
        raise damaged(file, "zip", error) from None


def tar_members(blocks: Iterable[bytes], file: SourceFile, tally: Tally) -> Iterator[Member]:
    """The files of a tar in its order, without hidden ones; links and devices are skipped and counted.

    Raises:
        UserError: for a damaged or truncated archive.
    """
    stream: Any = Stream(blocks)
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=Header) as opened:
            archive: Any = opened
            while (info := archive.next()) is not None:
                archive.members.clear()  # it would keep all of them
                if info.isdir() or is_hidden(info.name):
                    continue

                member = member_file(file, info.name, info.size)
                content = archive.extractfile(info) if info.isreg() else None
                if content is None:
                    tally.skip(member.shown, "a link or a device in an archive", 0, whole=True)
                else:
                    yield Member(member, Content(content, file, "tar"), info.size)

            if getattr(archive, "has_no_end", False):
                tally.note(file.shown, "this tar has no end marker: it may be truncated")
    except DAMAGE as error:
        raise damaged(file, "tar", error) from None


class Header(tarfile.TarInfo):
    """A tar header that is either valid or an error.

    The library treats a damaged header as the end of the archive, and reads a name of any length into memory.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            archive: Any = tarfile_
            archive.has_no_end = True
            raise
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None

    def _proc_member(self, tarfile_: tarfile.TarFile) -> Any:
        if not self.isreg() and self.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(tarfile_)  # type: ignore[misc]


class Stream:
    """Blocks as a file that is read sequentially."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks, self.buffer = iter(blocks), b""

    def read(self, size: int) -> bytes:
        parts, wanted = [], size
        while wanted > 0:
            if not self.buffer:
                self.buffer = next(self.blocks, b"")
                if not self.buffer:
                    break
            parts.append(self.buffer[:wanted])
            self.buffer = self.buffer[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)


def member_file(archive: SourceFile, name: str, size: int) -> SourceFile:
    return SourceFile(archive.path, f"{archive.shown}/{name}", size, archive.identity, within=archive.shown)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder above it is hidden, or one that macOS adds to a zip."""
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def document_kind(names: list[str]) -> str:
    """The kind of a zip that is not an archive for its user, such as an office document; "" for any other zip."""
    if any(name.endswith(WEIGHTS) for name in names):
        return "PyTorch's weights"
    return next((kind for name, kind in DOCUMENTS.items() if name in names), "")


def damaged(file: SourceFile, kind: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or "it stops before its end"
    return UserError(f"{file.shown} is a damaged {kind} archive ({reason[:200]}); fetch it again")
