"""The text of an arm, for claims about data: held-out documents apart from the others, of which a share may be damaged.

    shuffled      the lines of a document in another order
    duplicates    a copy of one of a few documents in place of a document, with a line of its own in front of it, so
                  that it is not an exact duplicate
    boilerplate   the same twelve lines in front of each eighth line of a document

A hash of a document's content decides whether it is held out and whether it is damaged: all damages of a text hold out
the same documents, whole and undamaged. Several sources are kept apart: an arm may train on one of them and be measured
on the held-out documents of all.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from isoflop.config import nearest
from isoflop.data.config import DataConfig
from isoflop.data.corpus import parse_sources
from isoflop.data.prepare import documents
from isoflop.errors import UserError
from isoflop.files import NAME_HOME, disk_errors, home, write_text
from isoflop.untrusted import read_text

KINDS = ("shuffled", "duplicates", "boilerplate")
HELD_OUT = 40  # one document in 40 is held out
COPIED = 3  # documents of which the near-copies are made
MOST_BYTES = 6_000_000  # of a text that is damaged; the lab's runs read less
MOST_APART = 12_000_000  # of each of several sources
PIECE = 4000  # characters of a document, of which long ones have several
BOILERPLATE = "\n".join(
    f"Section {number}. All rights reserved. Accept all cookies. Subscribe to our newsletter. Share this page."
    for number in range(1, 13)
)


def check(damage: Mapping[str, float], arm: str) -> None:
    """Check the damage of an arm.

    Raises:
        UserError: for an unknown kind, or a share that is not from 0 to 1.
    """
    for kind, share in damage.items():
        if kind not in KINDS:
            raise UserError(
                f"arms.{arm}.damage has {kind!r}, which is not one of {', '.join(KINDS)}{nearest(kind, KINDS)}"
            )
        if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
            raise UserError(f"arms.{arm}.damage.{kind} = {share!r} is not a share of the documents, from 0 to 1")


def paths_of(data: DataConfig, damage: Mapping[str, float]) -> tuple[Path, Path]:
    """Paths of the training text and of the held-out text, below $ISOFLOP_HOME."""
    deciding = json.dumps([list(data.sources), dict(damage), data.text_column, data.encoding, data.document_separator])
    folder = home() / "lab-text" / hashlib.sha256(deciding.encode()).hexdigest()[:16]
    return folder / "train.jsonl", folder / "heldout.jsonl"


def damaged(data: DataConfig, damage: Mapping[str, float]) -> DataConfig:
    """The data's configuration with the damaged text in place of its sources. `write` makes it."""
    train, heldout = paths_of(data, damage)
    return replace(data, sources=(f"damaged={train}",), heldout=(str(heldout),))


def named(sources: Sequence[str]) -> dict[str, str]:
    """The sources by name, as the user wrote them; a source without a name is known by its file's."""
    return {source.name: text for source, text in zip(parse_sources(sources), sources, strict=True)} if sources else {}


def apart(data: DataConfig, trained_on: Sequence[str], all_of: Sequence[str]) -> DataConfig:
    """The data's configuration with the training text of some of its sources, by name, and the held-out text of each of
    `all_of`, which has the source's name. `write_apart` makes them."""
    at = {name: paths_of(alone(data, name), {}) for name in all_of}
    return replace(
        data,
        sources=tuple(f"{name}={at[name][0]}" for name in trained_on),
        heldout=tuple(f"{name}={at[name][1]}" for name in all_of),
    )


def alone(data: DataConfig, name: str) -> DataConfig:
    """The configuration of one source of the data."""
    return replace(data, sources=(named(data.sources)[name],), heldout=())


def write_apart(data: DataConfig, all_of: Sequence[str]) -> None:
    """Make the text that `apart` names; see `write`."""
    for name in all_of:
        write(alone(data, name), {}, MOST_APART)


def write(data: DataConfig, damage: Mapping[str, float], most: int = MOST_BYTES) -> None:
    """Make the text that `damaged` names, unless it is there.

    Args:
        data: the configuration of the undamaged text.
        most: bytes of it that are used, from its beginning.

    Raises:
        UserError: if the text cannot be read, or there is no room for it.
    """
    train, heldout = paths_of(data, damage)
    kept: list[str] = []
    held: list[str] = []
    size = 0
    for piece in pieces(data):
        (held if number(piece, "held out") % HELD_OUT == 0 else kept).append(piece)
        size += len(piece)
        if size > most:
            break
    if not held and len(kept) > 1:  # a short text
        held = [min(kept, key=lambda piece: number(piece, "held out"))]
        kept.remove(held[0])
    if not kept or not held:
        raise UserError(f"{' '.join(data.sources) or 'the text'} is too short to hold documents out of")
    worse = [piece if (made := damaged_piece(piece, damage, kept)) is None else made for piece in kept]
    for path, texts in ((train, worse), (heldout, held)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        with disk_errors("the lab's text", instead=NAME_HOME):
            if not path.exists() or read_text(path) != lines:
                write_text(path, lines)


def pieces(data: DataConfig) -> Iterator[str]:
    """The documents, long ones in pieces that end with a line."""
    for document in documents(data):
        part: list[str] = []
        length = 0
        for line in document.splitlines():
            part.append(line)
            length += len(line) + 1
            if length >= PIECE:
                yield "\n".join(part)
                part, length = [], 0
        if part:
            yield "\n".join(part)


def damaged_piece(piece: str, damage: Mapping[str, float], kept: list[str]) -> str | None:
    """A piece damaged by the first kind whose share it falls into; None if it stays unchanged."""
    at = number(piece, "damaged") / 2**64
    reached = 0.0
    for kind in KINDS:
        reached += damage.get(kind, 0.0)
        if at >= reached:
            continue
        lines = piece.split("\n")
        if kind == "shuffled":
            random.Random(number(piece, kind)).shuffle(lines)
            return "\n".join(lines)
        if kind == "duplicates":
            own = number(piece, kind)
            return f"{own:x}\n{kept[own % min(COPIED, len(kept))]}"
        return "\n".join(f"{BOILERPLATE}\n{line}" if index % 8 == 0 else line for index, line in enumerate(lines))
    return None


def number(piece: str, what: str) -> int:
    """A number below 2^64, a hash of the content."""
    digest = hashlib.blake2b(f"{what}:{piece}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
