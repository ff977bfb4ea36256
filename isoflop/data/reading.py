"""How files are to be read, and what came of it: what the readers of all formats share."""

from dataclasses import dataclass, field

from isoflop.errors import UserError
from isoflop.records import SkippedFile

AUTO = "auto"


@dataclass(frozen=True)
class Reading:
    """What a reader is told about a source.

    Attributes:
        column: of records, the one that holds the text.
        encoding: of text that is not UTF-8, by a name that Python knows; "": such text is not read.
        separator: what stands between the documents of a plain text; "": a file is one document.
        format: AUTO: told by content; "text": plain text, whatever it holds.
    """

    column: str = "text"
    encoding: str = ""
    separator: str = ""
    format: str = AUTO


@dataclass
class Tally:
    """What was read and what was not. `strict` turns every skip into an error."""

    strict: bool = False
    documents: int = 0  # records, and plain-text files of which something was read
    pieces: int = 0  # what they were cut into
    empty: int = 0  # records, pieces and files of white space only
    skipped: list[SkippedFile] = field(default_factory=list)  # the first 20
    skipped_files: int = 0
    skipped_records: int = 0  # records of a file that went on, and pieces of a plain text
    skipped_bytes: int = 0
    notes: dict[str, list[str]] = field(default_factory=dict)  # what was noticed -> the files, the first 20

    def skip(self, path: str, reason: str, size: int, whole: bool) -> None:
        """Count `size` bytes not read: a `whole` file (size on disk), or one record or piece of it.

        Raises:
            UserError: if strict.
        """
        if self.strict:
            raise UserError(f"{path}: {reason}; without --strict it would be skipped and counted")
        self.skipped_files += whole
        self.skipped_records += not whole
        self.skipped_bytes += size
        if len(self.skipped) < 20:
            self.skipped.append(SkippedFile(path=path, reason=reason, bytes=size))

    def note(self, path: str, what: str) -> None:
        """Remember something that the user should know of a file that was read."""
        paths = self.notes.setdefault(what, []) if what in self.notes or len(self.notes) < 20 else []
        if len(paths) < 20:
            paths.append(path)
