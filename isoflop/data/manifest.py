"""The manifest of a folder of prepared data: its content, with a checksum of each file and of itself.

Text (prepared.py) and pairs (prepared_pairs.py) are prepared into such folders: files of tokens, tokenizer.json and,
written last, manifest.json.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from isoflop import files
from isoflop.config import load_json
from isoflop.data.shards import damaged, field, verify
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.records import DataAccount, Unused
from isoflop.untrusted import read_text

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"

Shards = dict[str, tuple[str, int]]  # token files with their SHA-256 and bytes


class Data(Protocol):
    """The interface of data to a run, for text (Prepared) and pairs (prepared_pairs.PreparedPairs)."""

    fingerprint: str
    vocab_size: int
    tokenizer: Tokenizer
    sources: tuple[str, ...]

    def train_tokens(self, source: str) -> int: ...

    def account(self) -> DataAccount: ...


@dataclass(frozen=True)
class Format:
    """A kind of prepared data.

    Attributes:
        name, version: as in the manifest.
        what: the kind of data, in words.
        absent: the error about a folder without a manifest, following the folder's name.
        foreign: the error about a manifest of another kind, following the folder's name; "": it counts as damaged.
    """

    name: str
    version: int
    what: str
    absent: str
    foreign: str = ""


class PreparedFolder:
    """An opened folder of prepared data.

    Attributes:
        folder: its path.
        manifest: the contents, with a checksum of each file.
        fingerprint: SHA-256 over everything that a run depends on.
        vocab_size: number of ids; each token is below it.
        seconds: time of this preparation; 0 if the folder existed already (`reused`).
        listed: for an existing folder, the files that were not used when the sources were listed just now.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], seconds: float = 0.0, reused: bool = True) -> None:
        self.folder, self.manifest, self.seconds, self.reused = folder, manifest, seconds, reused
        self.fingerprint: str = manifest["fingerprint"]
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer = tokenizer_of(folder, self.vocab_size)
        self.listed: tuple[Unused, ...] | None = None

    def account(self) -> DataAccount:
        """What was read, used and lost."""
        account = DataAccount.read(self.manifest["account"])
        if self.listed is not None:
            again = {(item.what, item.reason) for item in self.listed}
            of_reading = [
                item for item in account.unused or () if not item.meant and (item.what, item.reason) not in again
            ]
            lost = [item for item in self.listed if not item.meant]
            excluded = [item for item in self.listed if item.meant]
            account = account.updated(unused=(*of_reading, *lost, *excluded))
        return account.updated(
            fingerprint=self.fingerprint,
            folder=str(self.folder.resolve()),
            seconds=self.seconds,
            reused=self.reused,
        )


def read_manifest(
    folder: Path, kind: Format, check: Callable[[dict[str, Any], Path], Shards], verify_checksums: bool = True
) -> dict[str, Any]:
    """The manifest of a folder of this format, with every field checked and, with `verify_checksums`, every file.

    Args:
        check: checks the fields that are specific to the format and returns the files of tokens.

    Raises:
        UserError: if a file is missing, of another format version, or has so much as a flipped bit.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} {kind.absent}")
    manifest = load_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != kind.name:
        if kind.foreign:
            raise UserError(f"{folder} {kind.foreign}")
        raise damaged(path, f"it is not the manifest of prepared {kind.what}")
    if manifest.get("version") != kind.version:
        raise UserError(
            f"{folder} was prepared in format {manifest.get('version')}, and this isoflop reads {kind.version}; "
            f"delete the folder to prepare the {kind.what} again"
        )
    if manifest.get("checksum") != checksum(manifest):
        raise damaged(path, "its checksum does not match")

    for name, type_ in (("fingerprint", str), ("tokenizer_sha256", str), ("account", dict), ("vocab_size", int)):
        field(manifest, name, type_, path)
    shards = check(manifest, path)
    if verify_checksums:
        verify(folder, {TOKENIZER: (manifest["tokenizer_sha256"], -1), **shards}, manifest["vocab_size"])
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its checksum. It is written last: it makes the folder one of prepared data."""
    files.write_json(folder / MANIFEST, {**manifest, "checksum": checksum(manifest)})


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> str:
    """Write tokenizer.json. Returns its SHA-256."""
    (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8", newline="\n")
    return files.sha256(folder / TOKENIZER)


def tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a folder of prepared data.

    Raises:
        UserError: if it cannot be used, or its number of ids differs from the manifest's.
    """
    tokenizer = Tokenizer.from_json(read_text(folder / TOKENIZER), str(folder / TOKENIZER))
    if tokenizer.vocab_size != vocab_size:
        raise damaged(folder / TOKENIZER, f"it has {tokenizer.vocab_size} ids and the manifest says {vocab_size}")
    return tokenizer


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest except its own checksum."""
    return sha256_of({key: value for key, value in manifest.items() if key != "checksum"})


def sha256_of(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")
    ).hexdigest()
