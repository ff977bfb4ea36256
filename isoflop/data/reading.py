"""How files are to be read: what the readers of all formats are told."""

from dataclasses import dataclass

FORMATS = (AUTO, TEXT) = ("auto", "text")


@dataclass(frozen=True)
class Reading:
    """What a reader is told about a source.

    Attributes:
        column: of records, the one that holds the text.
        encoding: of text that is not UTF-8, by a name that Python knows; "": such text is not read.
        separator: what stands between the documents of a plain text; "": a file is one document.
        format: AUTO: told by content; TEXT: plain text, whatever it holds.
    """

    column: str = "text"
    encoding: str = ""
    separator: str = ""
    format: str = AUTO
