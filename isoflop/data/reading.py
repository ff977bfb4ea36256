"""Reading: the settings of the readers of all formats."""

from dataclasses import dataclass

FORMATS = (AUTO, TEXT) = ("auto", "text")


@dataclass(frozen=True)
class Reading:
    """How to read the files of a source.

    Attributes:
        column: the column of records that holds the text.
        encoding: of text that is not UTF-8, by its name in Python; "": such text is not read.
        separator: the string between the documents of a plain text; "": a file is one document.
        format: AUTO: detected by content; TEXT: always plain text.
    """

    column: str = "text"
    encoding: str = ""
    separator: str = ""
    format: str = AUTO
