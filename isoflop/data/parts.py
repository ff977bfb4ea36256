"""The sources of a preparation with their files, listed once and read twice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from isoflop.data.config import DataConfig
from isoflop.data.corpus import Source, SourceFile, find_files, parse_sources, total_size, unchanged
from isoflop.data.readers import read_or_skip
from isoflop.data.tally import Tally, because
from isoflop.errors import UserError


@dataclass(frozen=True)
class Part:
    """A source with its files, listed once for both passes."""

    source: Source
    files: list[SourceFile]
    heldout: bool = False  # named as held-out text
    tally: Tally = field(default_factory=Tally)  # files that were excluded when they were listed


def list_parts(config: DataConfig) -> list[Part]:
    """All sources with their files: the held-out ones first, so that their digests are known when the training text is
    read."""
    heldout = parse_sources(config.heldout) if config.heldout else ()
    for source in heldout:
        if source.weight is not None:
            raise UserError(
                f"held-out source {source.name!r} has a weight; held-out text is used completely, so remove the weight"
            )
    named = [(source, True) for source in heldout] + [(source, False) for source in parse_sources(config.sources)]
    parts = []
    for source, is_heldout in named:
        tally = Tally(strict=config.strict)
        parts.append(Part(source, find_files(source, tally, older=config.split == 1), is_heldout, tally))
    return parts


def read_parts(
    parts: list[Part], tallies: list[Tally], config: DataConfig, on_progress: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """(number of the part, document) of all parts, in order. `on_progress(n)`: n bytes on disk have been read.

    Raises:
        UserError: if a file changed meanwhile.
    """
    before = 0
    for number, part in enumerate(parts):
        how = config.reading(part.source)
        for file in part.files:
            pieces = tallies[number].pieces
            for document in read_or_skip(file, how, tallies[number], after(before, on_progress)):
                yield number, document
            if tallies[number].pieces > pieces and not unchanged(file):
                raise changed(file.shown)
            before += file.size
            on_progress(before)


def after(before: int, on_progress: Callable[[int], None]) -> Callable[[int], None]:
    """A callback that counts from the end of `before` bytes on."""
    return lambda n: on_progress(before + n)


def changed(what: str) -> UserError:
    return UserError(f"{what} changed while it was being read; prepare again when it is complete")


def no_text(part: Part, tally: Tally) -> UserError:
    """Why a source gave no document."""
    name = f"source {part.source.name} ({part.source.pattern})"
    if len(part.files) <= 1 and tally.failure:
        return UserError(tally.failure)
    if not part.files:
        return UserError(f"{name} has no file that can be read; name a file or folder with text in it{because(tally)}")
    if not total_size(part.files):
        return UserError(f"{name} is empty; name a file or folder with text in it{because(tally)}")
    if tally.skipped_files:
        first = tally.skipped[0]
        return UserError(
            f"{name} holds no text: {tally.skipped_files} of its {len(part.files)} files were skipped, "
            f"the first ({first.path}) as {first.reason}"
        )
    if tally.skipped_records:
        first = tally.skipped[0]
        records = f"all {tally.skipped_records} records were" if tally.skipped_records > 1 else "its only record was"
        return UserError(f"{name} holds no text: {records} skipped ({first.reason})")
    if not tally.empty:
        return UserError(f"{name} holds no records; name a file or folder with text in it")
    return UserError(f"{name} holds nothing but white space; name a file or folder with text in it")
