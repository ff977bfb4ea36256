"""The one exception that a person is meant to read."""

import shlex
from typing import Any

LONGEST = 1900  # characters of a message; of a longer one the middle is left out


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one line: it names the offending value and the way out. The CLI prints it and exits with 2; from
    Python it is an ordinary exception. Raise it before anything on disk is changed.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DiskError(UserError):
    """Something of ours could not be written: a full, read-only or vanished disk."""


def one_line(text: str) -> str:
    """Text as one line that a terminal shows as it is: a name that a message quotes may hold anything, line feeds and
    a terminal's commands too, and be as long as a book."""
    shown = shorter(text)
    return shorter("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown))


def shorter(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} ... {text[-490:]}"


def quoted(value: Any) -> str:
    """A path or a name as one word of a command that a message advises: what is copied from it has to work."""
    return shlex.quote(str(value))
