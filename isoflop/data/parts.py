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
    tally: Tally = field(default_factory=Tally)  # what was left out when the files were listed


def list_parts(config: DataConfig) -> list[Part]:
    """The held-out sources first, so that their digests are known when the training text is read."""
    heldout = parse_sources(config.heldout) if config.heldout else ()
    for source in heldout:
        if source.weight is not None:
            raise UserError(
                f"held-out source {source.name!r} has a weight; held-out text is read whole, so leave it out"
            )
    named = [(source, True) for source in heldout] + [(source, False) for source in parse_sources(config.sources)]
    parts = []
    for source, held in named:
        tally = Tally(strict=config.strict)
        parts.append(Part(source, find_files(source, tally, older=config.split == 1), held, tally))
    return parts


def read_parts(
    parts: list[Part], tallies: list[Tally], config: DataConfig, moved: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """(number of the part, document) of all parts, in order. `moved(n)` reports that n bytes on disk have been read.

    Raises:
        UserError: if a file changed meanwhile.
    """
    before = 0
    for number, part in enumerate(parts):
        how = config.reading(part.source)
        for file in part.files:
            pieces = tallies[number].pieces
            for document in read_or_skip(file, how, tallies[number], after(before, moved)):
                yield number, document
            if tallies[number].pieces > pieces and not unchanged(file):
                raise changed(file.shown)
            before += file.size
            moved(before)


def after(before: int, moved: Callable[[int], None]) -> Callable[[int], None]:
    return lambda n: moved(before + n)


def changed(what: str) -> UserError:
    return UserError(f"{what} changed while it was being read; prepare again when it is complete")


def no_text(part: Part, tally: Tally) -> UserError:
    name = f"source {part.source.name} ({part.source.pattern})"
    if len(part.files) <= 1 and tally.failure:
        return UserError(tally.failure)
    if not part.files or not total_size(part.files):
        return UserError(f"{name} is empty; name a file or folder with text in it{because(tally)}")
    if tally.skipped_files:
        first = tally.skipped[0]
        return UserError(
            f"{name} holds no text: {tally.skipped_files} of its {len(part.files)} files were skipped, "
            f"the first ({first.path}) as {first.reason}"
        )
    if tally.skipped_records:
        first = tally.skipped[0]
        return UserError(f"{name} holds no text: all {tally.skipped_records} records were skipped ({first.reason})")
    return UserError(f"{name} holds nothing but white space; name a file or folder with text in it")
