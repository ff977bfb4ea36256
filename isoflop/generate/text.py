"""Decodes tokens to text incrementally, up to a stop string."""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from isoflop.errors import UserError


class Tokenizer(Protocol):
    """The interface of a tokenizer to generation (isoflop.data.tokenizer implements it)."""

    @property
    def eot(self) -> int: ...

    @property
    def start(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode_bytes(self, ids: Sequence[int], begins: bool = True) -> bytes: ...


class Text:
    """A text that grows by tokens, in pieces of whole characters.

    Args:
        begins: True if the first token may have a leading space that is not part of the text.
        on_text: called with each piece.
        stops: the text ends before the first of these that appears. Text that may become a stop string is held back.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        begins: bool,
        on_text: Callable[[str], None] | None = None,
        stops: Sequence[str] = (),
    ) -> None:
        self.tokenizer, self.begins, self.on_text, self.stops = tokenizer, begins, on_text, tuple(stops)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.pieces: list[str] = []
        self.held = ""
        self.stopped = False
        self.later: list[int] | None = [] if on_text is None and not self.stops else None

    def add(self, token: int) -> bool:
        """Add a token.

        Returns:
            True if the text has reached a stop string, after which nothing more is added.
        """
        if self.later is not None:  # nobody reads it before the end, and decoding all at once is much faster
            self.later.append(token)
            return False
        if not self.stopped:
            self.take(self.decoder.decode(self.tokenizer.decode_bytes([token], self.begins)))
            self.begins = False
        return self.stopped

    def end(self) -> str:
        """The whole text; an incomplete character at the end becomes U+FFFD."""
        if self.later is not None:
            return self.tokenizer.decode_bytes(self.later, self.begins).decode("utf-8", errors="replace")
        if not self.stopped:
            self.take(self.decoder.decode(b"", final=True))
            self.emit(self.held)
            self.held = ""
        return "".join(self.pieces)

    def take(self, piece: str) -> None:
        """Emit what cannot be part of a stop string, and hold the rest."""
        if not self.stops:
            self.emit(piece)
            return
        text = self.held + piece
        positions = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        if positions:
            self.emit(text[: min(positions)])
            self.held, self.stopped = "", True
            return
        holding = max(beginning_at_end(text, stop) for stop in self.stops)
        self.emit(text[: len(text) - holding])
        self.held = text[len(text) - holding :]

    def emit(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            if self.on_text is not None:
                self.on_text(piece)


def beginning_at_end(text: str, stop: str) -> int:
    """The length of the longest end of a text that is the beginning of a stop string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def check_stops(stops: Sequence[str]) -> None:
    """Raises:
    UserError: for an empty stop string, or one string in place of a list, whose characters would each be one.
    """
    if isinstance(stops, str | bytes):
        raise UserError(f"stops = {stops!r} is one text; write a list of stop strings, as in [{stops!r}]")
    if other := next((stop for stop in stops if not isinstance(stop, str)), None):
        raise UserError(f"the stop string {other!r} is not a string; decode bytes first")
    if any(not stop for stop in stops):
        raise UserError("--stop '' is empty, which would end every text at once; leave it out")
