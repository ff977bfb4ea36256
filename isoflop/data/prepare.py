"""Data preparation: text -> scan -> tokenizer -> tokens -> a folder that is written atomically.

The folder's key is a hash of every file's path, size and modification time and of every setting that matters, so that
the same text with the same settings is prepared once: `$ISOFLOP_HOME/data/<key>`.
"""

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from isoflop import files
from isoflop.config import to_dict
from isoflop.data.config import DataConfig, check
from isoflop.data.corpus import find_files, parse_sources, total_size
from isoflop.data.encode import Encoders, batches
from isoflop.data.excerpt import excerpt
from isoflop.data.kinds import TOKENIZERS, find_kind, origin_of
from isoflop.data.manifest import MANIFEST, sha256_of, write_manifest, write_tokenizer
from isoflop.data.parts import Part, list_parts
from isoflop.data.prepared import FORMAT, Prepared, open_prepared
from isoflop.data.readers import read_or_skip
from isoflop.data.scan import Scan
from isoflop.data.shards import ShardWriter, dtype_for
from isoflop.data.shares import choose_shares, choose_stretches
from isoflop.data.survey import SAMPLE_BYTES, SourceSurvey, Survey, survey_sources
from isoflop.data.tally import Tally, notes_of, total_of
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.processors import cores
from isoflop.records import DataAccount, PreparedSource, Side

__all__ = ["Prepared", "Progress", "Survey", "documents", "open_prepared", "prepare", "survey"]

BYTES_PER_WORKER = 4_000_000  # for less, starting another process takes longer than encoding
RULES = 3  # of the formats, the split and the sampling: raise it when other documents than before are kept


class Progress(Protocol):
    """Receives the progress of a stage; `done` and `total` in bytes on disk."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None: ...


def survey(config: DataConfig) -> Survey:
    """The text to train on, estimated from the first bytes of a few files; standard input is copied to disk once.

    Raises:
        UserError: if there is no such text.
    """
    check(config)
    if not config.path:
        return survey_sources(config)

    prepared = open_prepared(Path(config.path), verify_checksums=False)
    accounts = prepared.account().sources
    sizes = {name: account.bytes or 0 for name, account in accounts.items()}
    sources = tuple(
        SourceSurvey(name, 0, sizes[name], sizes[name], sizes[name] / max(account.documents or 0, 1))
        for name, account in accounts.items()
    )
    total = sum(source.text_bytes for source in sources)
    return Survey(0, total, sources, prepared.heldout_bytes, excerpt(prepared, SAMPLE_BYTES))


def documents(config: DataConfig, tally: Tally | None = None) -> Iterator[str]:
    """All documents of the sources, long plain texts in pieces; only data that is not text is dropped.

    Args:
        tally: counts the documents that are read and everything that is skipped.

    Raises:
        UserError: if a source cannot be read, or (strict) if anything would be skipped.
    """
    tally = tally or Tally(strict=config.strict)
    for source in parse_sources(config.sources):
        how = config.reading(source)
        for file in find_files(source, tally, older=config.split == 1):
            for document in read_or_skip(file, how, tally):
                yield document.decode()


def prepare(config: DataConfig, out: Path | None = None, progress: Progress | None = None) -> Prepared:
    """Tokenize text, or reuse the result of an earlier call.

    The folder is `out`, or `$ISOFLOP_HOME/data/<key>`. Memory grows with the corpus by 16 bytes per document.

    Raises:
        UserError: for unusable sources or settings, or a full disk; then nothing is left behind.
    """
    check(config)
    if config.path:
        return open_prepared(Path(config.path))

    started = time.perf_counter()
    given = Tokenizer.given(config.tokenizer, config.end_of_text)
    parts = list_parts(config)
    key = key_of(config, parts, given)
    folder = Path(out) if out else files.home() / "data" / key[:16]
    instead = "name another folder" if out else files.NAME_HOME
    if reused := existing(folder, key):  # before the check of the disk: the folder may be on a read-only one
        reused.listed = total_of([part.tally for part in parts]).unused()
        return reused

    if not out:
        with files.disk_errors("the prepared data", instead=files.NAME_HOME):
            folder.parent.mkdir(parents=True, exist_ok=True)  # never removed: other processes may be using it
    files.try_folder(folder.parent, "the prepared data", instead=instead)
    with contextlib.suppress(UserError, OSError):  # with --out no home is needed
        sweep(files.home() / "data")
    sweep(folder.parent, glob.escape(folder.name))

    report: Progress = progress or (lambda stage, done, total, note="": None)
    total = float(sum(total_size(part.files) for part in parts))
    surveyed = survey(config) if config.max_train_bytes or config.split > 1 else None
    shares, stretches = choose_shares(config, parts, surveyed), choose_stretches(config, surveyed)
    with Scan(config, parts, shares, stretches) as scan:
        scan.run(throttled(report, "reading", total))
        tokenizer = given
        if tokenizer is None:
            report("tokenizer", 0.0, 0.0, f"{config.vocab_size} ids")
            tokenizer = Tokenizer(TOKENIZERS[config.tokenizer]().train(scan.tokenizer_sample(), config.vocab_size))
        scan.samples.clear()

        try:
            with files.new_folder(folder) as temporary:
                write(temporary, key, config, scan, tokenizer, throttled(report, "encoding", total))
        except OSError:
            if reused := existing(folder, key):  # another process finished the same work first
                return reused
            with files.disk_errors("the prepared data", instead=instead):
                raise
    opened = open_prepared(folder, verify_checksums=False)
    return Prepared(folder, opened.manifest, seconds=time.perf_counter() - started, reused=False)


def existing(folder: Path, key: str) -> Prepared | None:
    """The prepared data with this key if `folder` holds it, None if the folder does not exist or is empty.

    Raises:
        UserError: if the folder holds anything else.
    """
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} exists and holds no prepared data; name another folder")
    prepared = open_prepared(folder)
    if prepared.manifest["key"] != key:
        raise UserError(f"{folder} holds data prepared from other text or settings; name another folder or delete it")
    return prepared


def sweep(folder: Path, name: str = "*") -> None:
    """Remove the temporary folders of killed preparations of folders called `name` (a pattern). They are as large as
    the prepared text and would fill the disk of a machine that is preempted often."""
    for leftover in folder.glob(f".{name}.{8 * '[0-9a-f]'}.tmp"):
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            if files.abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def key_of(config: DataConfig, parts: list[Part], given: Tokenizer | None) -> str:
    """A hash that names the result: it changes with the text, with any setting that matters, and with the format."""
    settings = to_dict(config)
    for irrelevant in ("workers", "path", "sources", "heldout", "tokenizer", "pair_split"):
        del settings[irrelevant]
    if given:
        del settings["vocab_size"]
    listed = [
        [
            part.heldout,
            part.source.name,
            part.source.weight,
            part.source.column,
            [list(file.identity) for file in part.files],
        ]
        for part in parts
    ]
    origin = sha256_of(given.to_json()) if given else origin_of(config.tokenizer)
    return sha256_of([FORMAT.name, FORMAT.version, RULES, settings, origin, listed])


def throttled(report: Progress, stage: str, total: float) -> Callable[[int], None]:
    """A callback that reports the progress of a stage about 200 times, however often it is called."""
    reported = [0.0]

    def on_progress(done: int) -> None:
        if reported[0] < total and (done - reported[0] >= total / 200 or done >= total):
            reported[0] = done
            report(stage, float(done), total)

    report(stage, 0.0, total)
    return on_progress


def write(
    folder: Path,
    key: str,
    config: DataConfig,
    scan: Scan,
    tokenizer: Tokenizer,
    on_progress: Callable[[int], None],
) -> None:
    """Second pass: encode the kept documents; then write the tokenizer and, last, the manifest."""
    useful = max(1, scan.total("train").bytes // BYTES_PER_WORKER)
    streams = write_streams(
        folder, scan, tokenizer, Encoders(tokenizer, min(config.workers or cores(), useful)), on_progress
    )

    training = [
        {"name": part.source.name, "weight": part.source.weight, "train": streams[number]}
        for number, part in enumerate(scan.parts)
        if not part.heldout
    ]
    heldout = {**streams[None], "bytes": scan.total("heldout").bytes}

    manifest: dict[str, Any] = {
        "format": FORMAT.name,
        "version": FORMAT.version,
        "key": key,
        "fingerprint": fingerprint_of(training, heldout, tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "tokenizer_sha256": write_tokenizer(folder, tokenizer),
        "settings": to_dict(config),
        "split": {"rule": config.split, "piece_bytes": scan.stretches.size if scan.stretches else None},
        "sources": training,
        "heldout": heldout,
        "account": account_of(config, scan, tokenizer, streams).to_dict(),
    }
    write_manifest(folder, manifest)


def write_streams(
    folder: Path, scan: Scan, tokenizer: Tokenizer, encoders: Encoders, on_progress: Callable[[int], None]
) -> dict[int | None, dict[str, Any]]:
    """Write one token stream per training part and, under None, one for the held-out text."""
    dtype = dtype_for(tokenizer.vocab_size)
    training = [number for number, part in enumerate(scan.parts) if not part.heldout]
    writers: dict[int | None, ShardWriter] = {None: ShardWriter(folder, "heldout", dtype)}
    try:
        for order, number in enumerate(training):
            writers[number] = ShardWriter(folder, f"train.{order}", dtype)
        with encoders:
            for batch, counts, tokens in encoders.encode(batches(scan.kept(on_progress))):
                start = 0
                for label, count in zip(batch.labels, counts, strict=True):
                    writers[label].write(tokens[start : start + int(count)])
                    start += int(count)
        return {label: writer.close() for label, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.abandon()


def fingerprint_of(training: list[dict[str, Any]], heldout: dict[str, Any], tokenizer: Tokenizer) -> str:
    """A hash of what a run depends on: the tokens of each source in order, the weights, the held-out tokens and the
    tokenizer."""
    sources = [[source["name"], source["weight"], source["train"]["sha256"]] for source in training]
    return sha256_of([sources, heldout["sha256"], sha256_of(tokenizer.to_json())])


def account_of(
    config: DataConfig, scan: Scan, tokenizer: Tokenizer, streams: dict[int | None, dict[str, Any]]
) -> DataAccount:
    """The account of all bytes that were found. `train` and `heldout` count pieces as documents."""
    tally = total_of([account.tally for account in scan.accounts])
    train, heldout, unsampled = scan.total("train"), scan.total("heldout"), scan.total("unsampled")
    tokens = sum(stream["tokens"] for label, stream in streams.items() if label is not None)
    by_hash = f"by hash, {heldout.bytes / max(train.bytes + heldout.bytes, 1):.1%} of the text"

    return DataAccount(
        vocab_size=tokenizer.vocab_size,
        tokenizer=kind.described() if (kind := find_kind(config.tokenizer)) else config.tokenizer,
        bytes_per_token=train.bytes / tokens,
        documents=tally.documents,
        pieces=tally.pieces,
        empty=tally.empty,
        duplicates=scan.total("duplicates").documents,
        duplicate_bytes=scan.total("duplicates").bytes,
        in_heldout=scan.total("in_heldout").documents,
        skipped=tuple(tally.skipped),
        skipped_files=tally.skipped_files,
        skipped_records=tally.skipped_records,
        skipped_bytes=tally.skipped_bytes,
        unused=tally.unused(),
        found_bytes=tally.found_bytes,
        sampled_share=train.bytes / (train.bytes + unsampled.bytes),
        train=Side(documents=train.documents, bytes=train.bytes, tokens=tokens),
        heldout=Side(
            documents=heldout.documents,
            bytes=heldout.bytes,
            tokens=streams[None]["tokens"],
            how="named" if config.heldout else by_hash,
            unsampled_bytes=scan.total("unsampled_heldout").bytes,
        ),
        sources={
            part.source.name: PreparedSource(
                pattern=part.source.pattern,
                weight=part.source.weight,
                files=len(part.files),
                documents=account.train.documents,
                bytes=account.train.bytes,
                tokens=streams[number]["tokens"],
                duplicates=account.duplicates.documents,
                heldout_documents=account.heldout.documents,
                unsampled_bytes=account.unsampled.bytes,
            )
            for number, (part, account) in enumerate(zip(scan.parts, scan.accounts, strict=True))
            if not part.heldout
        },
        notes=notes_of(tally) or None,
    )
