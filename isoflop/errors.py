"""UserError, the exception whose message is for the user, and the form of such messages."""

import shlex
from typing import Any

LONGEST = 1900  # characters of a message; the middle of a longer one is omitted


class UserError(Exception):
    """An argument, setting, file or text of the user cannot be used.

    The message is one line: it names the offending value and a way out. The CLI prints it and exits with 2; from Python
    it is an ordinary exception. Raise it before anything on disk is changed.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DiskError(UserError):
    """A file could not be written: a full, read-only or vanished disk."""


def one_line(text: str) -> str:
    """Text as one line that is safe on a terminal: a name that a message quotes may contain any characters, such as
    line feeds and escape sequences, and be of any length."""
    shown = shorter(text)
    return shorter("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown))


def shorter(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 500]} ... {text[-490:]}"


def quoted(value: Any) -> str:
    """A path or a name quoted for a shell, so that a command in a message can be copied."""
    return shlex.quote(str(value))
