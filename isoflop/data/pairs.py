"""Pairs of an input and an output, from text files to tokens, to train an encoder-decoder.

One pair per line. If there is a tab near the start of a file, tabs separate inputs from outputs; else the first space
of a line does, as in CMUdict. Files may be compressed. A line that is not a pair is skipped, counted and reported.

    lines -> pairs -> variants renamed -> duplicates removed -> split by input -> tokenizer -> tokens -> a folder

All pairs are in memory while they are prepared (about 200 bytes each). The folder is written atomically and kept at
`$ISOFLOP_HOME/data/<key>`, like prepared text.
"""

import codecs
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop import files
from isoflop.data.config import DataConfig, check
from isoflop.data.corpus import SourceFile, find_files, parse_sources
from isoflop.data.decompress import compression_of, decompress, peekable
from isoflop.data.encodings import to_utf8
from isoflop.data.formats import written_in
from isoflop.data.json_records import LONGEST_LINE, lines
from isoflop.data.kinds import TOKENIZERS, find_kind, origin_of
from isoflop.data.manifest import MANIFEST, sha256_of, write_manifest, write_tokenizer
from isoflop.data.pair_split import Pair, Split, divide, size_of, without_variants
from isoflop.data.prepare import Progress, sweep
from isoflop.data.prepared_pairs import (
    FORMAT,
    SIDES,
    LoosePairs,
    PreparedPairs,
    open_pairs,
    write_side,
)
from isoflop.data.reading import Reading
from isoflop.data.tally import Tally, notes_of
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.records import DataAccount, PreparedSource, Side

RULES = 1  # of splitting and choosing a tokenizer: raise it when other pairs than before are kept
LONGEST = 512  # tokens per side; longer pairs are dropped and counted
SHOWN = 60  # characters of a pair in a message


def prepare_pairs(config: DataConfig, progress: Progress | None = None) -> PreparedPairs:
    """Tokenize files of pairs, or reuse the result of an earlier call.

    Raises:
        UserError: for sources with no pairs or too few, or (strict) a line that is not a pair.
    """
    check(config)
    if config.path:
        return open_pairs(Path(config.path))

    started = time.perf_counter()
    given = Tokenizer.given(config.tokenizer, config.end_of_text)
    tally = Tally(strict=config.strict)
    sources = [(source, find_files(source, tally)) for source in parse_sources(config.sources)]
    if weighted := [source.name for source, _ in sources if source.weight is not None]:
        raise UserError(f"source {weighted[0]} has a weight; weights are not supported for pairs, so remove it")
    heldout_sources = parse_sources(config.heldout) if config.heldout else ()
    heldout_files = [file for source in heldout_sources for file in find_files(source, tally)]
    train_files = [file for _, listed in sources for file in listed]
    key = key_of(config, train_files, heldout_files, given)
    folder = files.home() / "data" / key[:16]
    if (folder / MANIFEST).is_file():
        opened = open_pairs(folder)
        opened.listed = tally.unused()
        return opened

    sweep(files.home() / "data")
    report: Progress = progress or (lambda stage, done, total, note="": None)
    report("reading", 0.0, 0.0, "pairs")
    pairs = list(read_all(train_files, tally, config.encoding))
    split = divide(pairs, list(read_all(heldout_files, tally, config.encoding)), config)
    tokenizer = given
    if tokenizer is None:
        kind = TOKENIZERS[config.tokenizer]()
        tokenizer = Tokenizer(kind.train_on_pairs(*sides_of(split.train), config.vocab_size))

    report("encoding", 0.0, 0.0, "pairs")
    name = "+".join(source.name for source, _ in sources)
    try:
        with files.new_folder(folder) as temporary:
            write(temporary, key, name, config, split, tally, tokenizer)
    except OSError:
        if (folder / MANIFEST).is_file():  # another process finished the same work first
            return open_pairs(folder)
        with files.disk_errors("the prepared pairs", instead=files.NAME_HOME):
            raise
    opened = open_pairs(folder, verify_checksums=False)
    return PreparedPairs(folder, opened.manifest, seconds=time.perf_counter() - started, reused=False)


def key_of(config: DataConfig, train: list[SourceFile], heldout: list[SourceFile], given: Tokenizer | None) -> str:
    """A hash that names the result: it changes with the files, with any setting that matters, and with the format."""
    settings: list[Any] = [
        config.vocab_size if given is None else 0,
        config.heldout_fraction,
        config.strict,
        config.seed,
        *([config.encoding] if config.encoding else []),
        *([{"split": config.pair_split}] if config.pair_split > 1 else []),
    ]
    origin = sha256_of(given.to_json()) if given else origin_of(config.tokenizer)
    listed = [[list(file.identity) for file in side] for side in (train, heldout)]
    return sha256_of([FORMAT.name, FORMAT.version, RULES, settings, origin, listed])


def pairs_to_measure(config: DataConfig, tokenizer: Tokenizer, tally: Tally) -> LoosePairs:
    """All pairs of the sources, for a model with this tokenizer.

    Raises:
        UserError: for sources with no pairs.
    """
    listed = [file for source in parse_sources(config.sources) for file in find_files(source, tally)]
    distinct = dict.fromkeys(without_variants(list(read_all(listed, tally, config.encoding)), Split()))
    return LoosePairs.of(list(distinct), tokenizer)


# Lines -> pairs


def read_all(listed: Iterable[SourceFile], tally: Tally, encoding: str = "") -> Iterator[Pair]:
    """The pairs of all files. A file that has no pairs or cannot be read is counted as skipped, unless no file has
    pairs or `strict` is set.

    Raises:
        UserError: the error of the first such file.
    """
    before = tally.documents
    failed: list[UserError] = []
    for file in listed:
        try:
            yield from read_pairs(file, tally, encoding)
        except UserError as error:
            if tally.strict:
                raise
            failed.append(error)
            tally.skip(file.shown, str(error).removeprefix(f"{file.shown} "), 0, whole=True)
    if failed and tally.documents == before:
        raise failed[0]


def read_pairs(file: SourceFile, tally: Tally, encoding: str = "") -> Iterator[Pair]:
    """The pairs of a file, in its order.

    Args:
        encoding: of a file that is not UTF-8 and has no byte order mark.

    Raises:
        UserError: for a damaged file, a file without pairs, or (strict) any line that is not a pair.
    """
    before = tally.documents
    try:
        with file.path.open("rb") as raw:
            compression = compression_of(raw)
            blocks = peekable(decompress(raw, file))
            first = next(blocks, b"").removeprefix(codecs.BOM_UTF8)
            stored_in, reason = written_in(file, first, Reading(encoding=encoding), compression)
            if reason:
                tally.skip(file.shown, reason, file.size, whole=True)
                return

            blocks = itertools.chain([first], blocks)
            if stored_in:
                tally.note(file.shown, f"it was read as {stored_in}")
                blocks = peekable(to_utf8(blocks, stored_in))
                first = next(blocks, b"")
                blocks = itertools.chain([first], blocks)

            separator = "\t" if b"\t" in first else " "
            for number, (line, size) in enumerate(lines(blocks), 1):
                if not line and size <= LONGEST_LINE:
                    tally.empty += size > 0
                    continue
                pair, reason = parse_pair(line, separator) if line else (None, "the line is longer than any pair")
                if pair is None:
                    tally.skip(f"{file.shown} line {number}", reason, size, whole=False)
                    continue
                tally.documents += 1
                tally.used_bytes += size
                yield pair
    except OSError as error:
        raise UserError(f"{file.shown} cannot be read: {error.strerror or error}") from error
    if tally.documents == before:
        raise UserError(
            f"{file.shown} holds no pairs: a line is an input and its output, separated by a tab or a space"
        )


def parse_pair(line: bytes, separator: str) -> tuple[Pair | None, str]:
    """(pair, "") or (None, why the line is not a pair)."""
    try:
        source, separated, target = line.decode().partition(separator)
    except UnicodeDecodeError:
        return None, "the line is not valid UTF-8"
    source, target = source.strip(), target.strip()
    if not separated:
        return None, f"there is no {'tab' if separator == chr(9) else 'space'} in the line"
    if not source or not target:
        return None, "one side of the pair is empty"
    if "\t" in target:
        return None, "there is more than one tab in the line"
    return (source, target), ""


# Pairs -> tokens


def sides_of(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """All inputs and all outputs."""
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def write(
    folder: Path, key: str, name: str, config: DataConfig, split: Split, tally: Tally, tokenizer: Tokenizer
) -> None:
    """Write the four token streams, the tokenizer and, last, the manifest."""
    split.train, too_long = short_enough(split.train, tokenizer)
    split.heldout, too_long_heldout = short_enough(split.heldout, tokenizer)
    dropped = too_long + too_long_heldout
    split.too_long = len(dropped)
    if dropped:
        reason = f"a side has more than {LONGEST} tokens"
        tally.add("pair", reason, dropped[0][0][:SHOWN], sum(map(size_of, dropped)), len(dropped), meant=False)
    if not split.train or not split.heldout:
        raise UserError(f"no pair is short enough to learn from: both sides have at most {LONGEST} tokens")

    streams = {
        f"{part}.{side}": write_side(folder, f"{part}.{side}", [pair[number] for pair in pairs], tokenizer)
        for part, pairs in (("train", split.train), ("heldout", split.heldout))
        for number, side in enumerate(SIDES)
    }

    manifest: dict[str, Any] = {
        "format": FORMAT.name,
        "version": FORMAT.version,
        "key": key,
        "name": name,
        "fingerprint": sha256_of([{k: v["sha256"] for k, v in streams.items()}, sha256_of(tokenizer.to_json())]),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": write_tokenizer(folder, tokenizer),
        "split": {"rule": config.pair_split},
        "streams": streams,
        "account": account_of(config, name, split, tally, tokenizer, streams).to_dict(),
    }
    write_manifest(folder, manifest)


def short_enough(pairs: list[Pair], tokenizer: Tokenizer) -> tuple[list[Pair], list[Pair]]:
    """The pairs with at most LONGEST tokens per side (end-of-text counted), and the other pairs."""
    sides = [[len(ids) for ids in tokenizer.encode_batch([pair[side] for pair in pairs])] for side in (0, 1)]
    fits = [max(lengths) < LONGEST for lengths in zip(*sides, strict=True)]
    fitting = [pair for pair, short in zip(pairs, fits, strict=True) if short]
    return fitting, [pair for pair, short in zip(pairs, fits, strict=True) if not short]


def account_of(
    config: DataConfig,
    name: str,
    split: Split,
    tally: Tally,
    tokenizer: Tokenizer,
    streams: dict[str, dict[str, Any]],
) -> DataAccount:
    """The account of every line. Documents are pairs and bytes are of both sides; tokens include the end-of-text token
    of each output, and no padding."""

    def side(part: str, pairs: Sequence[Pair]) -> dict[str, Any]:
        return {
            "documents": len(pairs),
            "inputs": len({source for source, _ in pairs}),
            "bytes": sum(map(size_of, pairs)),
            "tokens": streams[f"{part}.source"]["tokens"] - len(pairs) + streams[f"{part}.target"]["tokens"],
        }

    kind, train = find_kind(config.tokenizer), side("train", split.train)
    source = PreparedSource(**train, duplicates=split.duplicates)
    return DataAccount(
        vocab_size=tokenizer.vocab_size,
        tokenizer=kind.described_on_pairs(*sides_of(split.train)) if kind else config.tokenizer,
        bytes_per_token=train["bytes"] / train["tokens"],
        documents=tally.documents,
        empty=tally.empty,
        duplicates=split.duplicates,
        duplicate_bytes=split.duplicate_bytes,
        in_heldout=split.in_heldout,
        variants=split.variants,
        too_long=split.too_long,
        skipped=tuple(tally.skipped),
        skipped_files=tally.skipped_files,
        skipped_records=tally.skipped_records,
        skipped_bytes=tally.skipped_bytes,
        unused=tally.unused(),
        found_bytes=tally.found_bytes,
        sampled_share=1.0,
        train=Side(**train),
        heldout=Side(**side("heldout", split.heldout), how=split.how),
        sources={name: source.written_as(*train, "duplicates", "weight")},
        notes=notes_of(tally) or None,
    )
