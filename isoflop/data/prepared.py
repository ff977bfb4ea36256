"""Prepared data as the rest of the house sees it: a folder with token files, a tokenizer and a manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from isoflop.config import load_json
from isoflop.data.shards import TokenStream, check_stream, damaged, dtype_for, field, verify
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.records import DataAccount
from isoflop.untrusted import read_text

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
FORMAT, FORMAT_VERSION = "isoflop-data", 1


class Data(Protocol):
    """What a run needs of its data, whatever that holds: text (Prepared) or pairs (prepared_pairs.PreparedPairs)."""

    fingerprint: str
    vocab_size: int
    tokenizer: Tokenizer
    sources: tuple[str, ...]

    def train_tokens(self, source: str) -> int: ...

    def account(self) -> DataAccount: ...


class Prepared:
    """Tokens ready to be read at random.

    Attributes:
        folder: where they lie.
        manifest: what is there, with a checksum of each file.
        fingerprint: SHA-256 over the tokens of each source and of the held-out text, the weights and the tokenizer.
        vocab_size: ids; each token is below it.
        sources: names, in the order in which they were given.
        heldout_bytes: bytes of text in the held-out documents.
        seconds: spent preparing now; 0 if the folder was there already (`reused`).
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], seconds: float = 0.0, reused: bool = True) -> None:
        self.folder, self.manifest, self.seconds, self.reused = folder, manifest, seconds, reused
        self.fingerprint: str = manifest["fingerprint"]
        self.vocab_size: int = manifest["vocab_size"]
        self.tokenizer = tokenizer_of(folder, self.vocab_size)
        self.dtype = dtype_for(self.vocab_size)
        self.heldout_bytes: int = manifest["heldout"]["bytes"]
        self._sources: dict[str, dict[str, Any]] = {source["name"]: source for source in manifest["sources"]}
        self.sources: tuple[str, ...] = tuple(self._sources)

    def train_tokens(self, source: str) -> int:
        return int(self._sources[source]["train"]["tokens"])

    def weights(self) -> dict[str, float]:
        """Each source's share of the tokens to train on, adding up to 1: as given, else in proportion to its tokens."""
        given = {name: source["weight"] for name, source in self._sources.items()}
        if all(weight is not None for weight in given.values()):
            return given
        total = sum(self.train_tokens(name) for name in self.sources)
        return {name: self.train_tokens(name) / total for name in self.sources}

    def train(self, source: str) -> TokenStream:
        """The training tokens of a source: its documents in the order of its files, each followed by end-of-text."""
        return TokenStream(self.folder, self._sources[source]["train"], self.dtype)

    def heldout(self) -> TokenStream:
        """The tokens of all held-out documents, each followed by end-of-text."""
        return TokenStream(self.folder, self.manifest["heldout"], self.dtype)

    def account(self) -> DataAccount:
        """What became of every byte that was found."""
        return DataAccount.read(self.manifest["account"]).updated(
            fingerprint=self.fingerprint,
            folder=str(self.folder.resolve()),
            seconds=self.seconds,
            reused=self.reused,
        )


def open_prepared(folder: Path, verify_checksums: bool = True) -> Prepared:
    """Open what `prepare` wrote.

    Raises:
        UserError: if a file is missing, of another format version, or has so much as a flipped bit.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds no prepared data: there is no {MANIFEST}; make it with `isoflop prepare --out`"
        )
    manifest = load_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise damaged(folder / MANIFEST, "it is not the manifest of prepared data")
    if manifest.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} was prepared in format {manifest.get('version')}, and this isoflop reads {FORMAT_VERSION}; "
            "delete the folder to prepare the data again"
        )
    if manifest.get("checksum") != checksum(manifest):
        raise damaged(folder / MANIFEST, "its checksum does not match")
    shards = check_manifest(manifest, folder / MANIFEST)
    if verify_checksums:
        verify(folder, {TOKENIZER: (manifest["tokenizer_sha256"], -1), **shards}, manifest["vocab_size"])
    return Prepared(folder, manifest)


def check_manifest(manifest: dict[str, Any], path: Path) -> dict[str, tuple[str, int]]:
    """Every field that a Prepared reads. Returns the token files with their SHA-256 and bytes.

    Raises:
        UserError: naming the first field that is not what `prepare` writes.
    """
    for name, kind in (("fingerprint", str), ("tokenizer_sha256", str), ("account", dict), ("vocab_size", int)):
        field(manifest, name, kind, path)
    field(field(manifest, "heldout", dict, path), "bytes", int, path)
    ids = manifest["vocab_size"]
    shards = check_stream(manifest["heldout"], path, ids)
    sources = field(manifest, "sources", list, path)
    names = [field(source, "name", str, path) for source in sources]
    weights = [source.get("weight") for source in sources]
    given = [weight for weight in weights if weight is not None]
    if len(set(names)) != len(names) or (given and len(given) != len(names)):
        raise damaged(path, "its sources are named twice, or some have no weight")
    if any(isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1 for weight in given):
        raise damaged(path, "the weight of a source is no share")
    for source in sources:
        shards |= check_stream(field(source, "train", dict, path), path, ids)
    if not manifest["heldout"]["tokens"] or not sum(source["train"]["tokens"] for source in sources):
        raise damaged(path, "there is nothing to train on or nothing held out")
    return shards


def tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a folder of prepared data.

    Raises:
        UserError: if it cannot be used, or has other ids than the manifest says.
    """
    found = Tokenizer.from_json(read_text(folder / TOKENIZER), str(folder / TOKENIZER))
    if found.vocab_size != vocab_size:
        raise damaged(folder / TOKENIZER, f"it has {found.vocab_size} ids and the manifest says {vocab_size}")
    return found


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest but its own checksum."""
    return sha256_of({key: value for key, value in manifest.items() if key != "checksum"})


def sha256_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
