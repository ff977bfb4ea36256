"""A suite's items, from the user's files.

Files are JSON lines, CSV or TSV with a header, in a folder or in a tar archive. A pattern is matched from the right of
a path, so that `blimp/*.jsonl` is found at any depth; a file at exactly that path is preferred.
"""

import csv
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from isoflop.errors import UserError
from isoflop.evaluate.suite import Shots, Suite, compiled, is_wanted
from isoflop.evaluate.templates import fill, member
from isoflop.untrusted import foreign, open_regular, parse_json, read_bytes
from isoflop.values import are, counted

LARGEST_FILE = 2**30  # bytes of one file of items
NO_PLACE = "is neither a folder nor a tar archive; name the folder that holds the items"
KINDS = "items are JSON lines (an object per line), CSV or TSV, in UTF-8 and not compressed"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Files = list[tuple[str, bytes]]  # names and contents of files


@dataclass(frozen=True)
class Item:
    """An item, with the suite's templates filled.

    Attributes:
        number: from 1, among the suite's.
        subset: that it counts to; "": none.
        contexts: what is read before each option, without examples.
        options: the options alone, whose length some metrics divide by.
        continuations: what is scored: the options with what joins them to their contexts.
        answer: the right option, from 0.
        expected: of an answer that is written: what it should be.
        shots: what precedes every context: the suite's `before` and its examples.
    """

    number: int
    subset: str
    contexts: tuple[str, ...]
    options: tuple[str, ...]
    continuations: tuple[str, ...]
    answer: int = 0
    expected: str = ""
    shots: str = ""

    @property
    def texts(self) -> list[str]:
        """Each context with its option, and what a written answer should be: what a training text may hold too."""
        joined = [context + text for context, text in zip(self.contexts, self.continuations, strict=True)]
        return [f"{text} {self.expected}" if self.expected else text for text in joined]


Make = Callable[[Suite, dict[str, Any], str, int], Item]  # suite, fields, where it is, number -> item without examples


def read_items(suite: Suite, make: Make, place: Path | None = None, limit: int = 0) -> list[Item]:
    """The items of a suite, in the order of its files.

    Args:
        make: the method's (methods.py).
        place: the folder or tar archive that holds the files; None: the folder of the suite's own file.
        limit: only so many of each subset, evenly spaced; 0: all.

    Raises:
        UserError: if the files are not there, or naming the item and what is wrong with it.
    """
    if place is None:
        if suite.built_in:
            raise UserError(
                f"the items of {suite.name} ({', '.join(suite.files)}) do not come with isoflop; name the folder or "
                f"the tar archive that holds them: --items FOLDER (they are from {suite.source})"
            )
        place = Path(suite.folder)
    patterns = [*suite.files, *(suite.shots.files if suite.shots else ())]
    store = find_files(patterns, place, suite.name)
    records = [*wanted(suite, store, suite.files, suite.where)]
    if not records:
        raise UserError(f"suite {suite.name}: {nothing_wanted(suite, store, place)}")

    shots = Examples(suite, suite.shots, store, records, make) if suite.shots else None
    places = [f"{suite.name} item {number} ({where})" for number, (_, where) in enumerate(records, 1)]
    items = [make(suite, record, at, i) for i, ((record, _), at) in enumerate(zip(records, places, strict=True), 1)]
    complete: list[Item] = []
    for item in spread(items, limit) if limit else items:
        (record, where), at = records[item.number - 1], places[item.number - 1]
        before = fill(suite.before, record, at) + (shots.before(record, where, at) if shots else "")
        complete.append(replace(item, shots=before))
    return complete


def nothing_wanted(suite: Suite, store: dict[str, Files], place: Path) -> str:
    """Why there is no item."""
    count = sum(1 for _ in wanted(suite, store, suite.files, {}))
    if not count:
        return f"{', '.join(suite.files)} in {place} has no items"
    found = f"none of the {count:,} items" if count > 1 else "the only item"
    return f"{found} in {place} is {'' if count > 1 else 'not '}wanted: where = {suite.where}"


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """So many items of each subset, evenly spaced in it, in their order: the first ones of a file are often of one
    kind."""
    subsets: dict[str, list[Item]] = {}
    for item in items:
        subsets.setdefault(item.subset, []).append(item)
    chosen = [part[i * len(part) // limit] for part in subsets.values() for i in range(limit) if len(part) > limit]
    whole = [item for part in subsets.values() if len(part) <= limit for item in part]
    return sorted([*chosen, *whole], key=lambda item: item.number)


class Examples:
    """Solved examples, chosen for each item: the first so many that are not the item itself."""

    def __init__(
        self, suite: Suite, shots: Shots, store: dict[str, Files], records: Sequence[tuple[Any, str]], make: Make
    ) -> None:
        self.suite, self.shots, self.make = suite, shots, make
        own = not shots.files and not shots.where
        self.records = list(records) if own else [*wanted(suite, store, shots.files or suite.files, shots.where)]
        if len(self.records) < shots.count:
            raise UserError(
                f"suite {suite.name}: shots.count = {shots.count}, and there {are(len(self.records))} "
                f"{counted(len(self.records), 'example')}"
            )

    def before(self, record: dict[str, Any], place: str, at: str) -> str:
        """The examples of an item, each with its answer, and the separator before the item.

        Args:
            place: the file and line of the item: by it and its fields it is known among the examples, which may have
                been read from the same file again.
        """
        same = fill(self.shots.same, record, at)
        chosen: list[str] = []
        for other, where in self.records:
            if len(chosen) == self.shots.count:
                break
            if (where, other) != (place, record) and fill(self.shots.same, other, where) == same:
                item = self.make(self.suite, other, f"{self.suite.name} example ({where})", 0)
                chosen.append(item.contexts[item.answer] + item.continuations[item.answer])
        if len(chosen) < self.shots.count:
            alike = f" with the same {self.shots.same}" if self.shots.same else ""
            raise UserError(
                f"{at}: shots.count = {self.shots.count}, and there {are(len(chosen))} "
                f"{counted(len(chosen), 'example')}{alike}; an item is not its own example"
            )
        return "".join(text + self.shots.between for text in chosen)


def wanted(
    suite: Suite, store: dict[str, Files], patterns: Sequence[str], where: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], str]]:
    """The items of files that a suite asks for, each with where it is: "arc_easy.jsonl line 12"."""
    for pattern in patterns:
        for name, content in store[pattern]:
            for number, record in records_of(name, content):
                if is_wanted(record, where):
                    yield record, f"{PurePosixPath(name).name} line {number}"


def records_of(name: str, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """The items of a file with their lines.

    Raises:
        UserError: naming the file and the line.
    """
    short = PurePosixPath(name).name
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{short} is not UTF-8 at byte {error.start}; {KINDS}") from None
    kind = PurePosixPath(name).suffix.lower()
    if kind in (".csv", ".tsv"):
        csv.field_size_limit(LARGEST_FILE)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",")
        with foreign(f"{short} is not {kind[1:].upper()}"):
            header = reader.fieldnames or ()
            if twice := next((name for name in header if header.count(name) > 1), None):
                raise UserError(f"{short} has the column {twice!r} twice; rename one")
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{short} line {reader.line_num} has more or fewer values than the header")
                yield reader.line_num, dict(row)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            if number == 1 and line.strip() == "[":
                raise UserError(f"{short} is an array of items; {KINDS}")
            record = parse_json(line, f"{short} line {number}")
            if not isinstance(record, dict):
                raise UserError(f"{short} line {number} is not a JSON object; {KINDS}")
            yield number, record


def find_files(patterns: Sequence[str], place: Path, suite: str) -> dict[str, Files]:
    """The files that each pattern matches, in the order of their names.

    Raises:
        UserError: if there are none, or a pattern matches files of two folders, neither of which is the pattern's own.
    """
    if not place.exists():
        raise UserError(f"--items {place} does not exist")
    files = in_folder(patterns, place) if place.is_dir() else in_archive(patterns, place)
    for pattern in patterns:
        if not files[pattern]:
            raise UserError(f"suite {suite}: no file {pattern} in {place}; name the folder that holds it with --items")
        by_folder: dict[str, Files] = {}
        for file in files[pattern]:
            by_folder.setdefault(str(PurePosixPath(file[0]).parent), []).append(file)
        own = str(PurePosixPath(pattern).parent)
        if len(by_folder) > 1 and own not in by_folder:
            first, second = sorted(by_folder)[:2]
            way_out = (
                f"name one of them: --items {place / first}" if place.is_dir() else "unpack it and name one of them"
            )
            raise UserError(f"suite {suite}: {pattern} is in {first} and in {second} of {place}; {way_out}")
        files = {**files, pattern: by_folder.get(own, files[pattern])}
    return files


def in_folder(patterns: Sequence[str], place: Path) -> dict[str, Files]:
    matching: dict[str, Files] = {}
    for pattern in patterns:
        paths = [path for path in place.rglob(PurePosixPath(pattern).name) if path.match(pattern)]
        matching[pattern] = [
            (path.relative_to(place).as_posix(), read_bytes(path, LARGEST_FILE)) for path in sorted(paths)
        ]
    return matching


def in_archive(patterns: Sequence[str], place: Path) -> dict[str, Files]:
    with foreign(f"--items {place} {NO_PLACE}"):
        about = place.stat()
    return unpacked(tuple(patterns), place, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def unpacked(patterns: tuple[str, ...], place: Path, size: int, changed: int) -> dict[str, Files]:
    """The files of an archive that each pattern matches. The last few results are kept: a run reads its suites
    twice, once to check them before anything is done, and decompressing takes seconds.

    Args:
        size, changed: of the archive, in bytes and nanoseconds, so that another one of the same name is read anew.
    """
    matching: dict[str, Files] = {pattern: [] for pattern in patterns}
    with (
        foreign(f"--items {place} {NO_PLACE}"),
        open_regular(place) as raw,
        tarfile.open(fileobj=raw, mode="r|*") as archive,
    ):
        for member in archive:
            matched = [pattern for pattern in matching if PurePosixPath(member.name).match(pattern)]
            if not member.isfile() or not matched:
                continue
            if member.size > LARGEST_FILE:
                raise UserError(f"{member.name} in {place} has {member.size:,} bytes; at most {LARGEST_FILE:,}")
            file = archive.extractfile(member)
            content = file.read() if file is not None else b""
            for pattern in matched:
                matching[pattern].append((member.name, content))
    return {pattern: sorted(files) for pattern, files in matching.items()}


def replaced(suite: Suite, text: str) -> str:
    """A text after the suite's replacements."""
    for pattern, by in suite.replace:
        text = compiled(pattern, "replace").sub(by, text)
    return text


def listed(suite: Suite, value: Any, record: dict[str, Any], name: str, at: str) -> tuple[str, ...]:
    """Options or contexts of an item: a field that holds them, or a template for each.

    Raises:
        UserError: if they are not two texts or more.
    """
    if isinstance(value, str):
        texts = member(record, value, at)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{at}: {name}, its field {value!r}, is not a list of texts")
    else:
        texts = [fill(template, record, at) for template in value]
    if len(texts) < 2:
        raise UserError(f"{at} has {counted(len(texts), name.removesuffix('s'))}; it needs two or more")
    return tuple(replaced(suite, text) for text in texts)


def joined(suite: Suite, texts: Sequence[str], name: str, at: str) -> tuple[str, ...]:
    """Texts behind the suite's delimiter, as they follow their contexts.

    Raises:
        UserError: if there is nothing to score.
    """
    continuations = tuple(suite.delimiter + text for text in texts)
    if "" in continuations:
        number = f" {continuations.index('') + 1} of {len(texts)}" if len(set(texts)) > 1 else ""
        raise UserError(f"{at}: its {name}{number} is empty, so that there is nothing to score")
    return continuations


def answer_of(suite: Suite, record: dict[str, Any], options: Sequence[str], at: str) -> int:
    """The number of the right option, from 0.

    Raises:
        UserError: if it is none of them.
    """
    text = fill(suite.answer, record, at).strip()
    if suite.answer_is == "text":
        same = replaced(suite, text).strip()  # as the options are
        matching = [i for i, option in enumerate(options) if option.strip() == same]
    elif suite.answer_is == "letter":
        matching = [LETTERS.index(text.upper())] if len(text) == 1 and text.upper() in LETTERS else []
    else:
        matching = [int(text)] if text.isdecimal() and len(text) < 10 else []
    if not matching or matching[0] >= len(options):
        hint = '; numbers begin at 0, and answer_is = "letter" or "text" is for others'
        raise UserError(
            f"{at}: its answer {text[:60]!r} is not the {suite.answer_is} of one of its {len(options)} options"
            + (hint if suite.answer_is == "number" else "")
        )
    return matching[0]
