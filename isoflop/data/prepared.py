"""Prepared data as the rest of the house sees it: a folder with token files, a tokenizer and a manifest."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from isoflop.config import load_json
from isoflop.data.shards import TokenStream, damaged, dtype_for, verify
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
FORMAT, FORMAT_VERSION = "isoflop-data", 1


class Data(Protocol):
    """What a run needs of its data, whatever that holds: text (Prepared) or pairs (prepared_pairs.PreparedPairs)."""

    fingerprint: str
    vocab_size: int
    tokenizer: Tokenizer
    sources: tuple[str, ...]

    def train_tokens(self, source: str) -> int: ...

    def account(self) -> dict[str, Any]: ...


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
        self.tokenizer = Tokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"), str(folder / TOKENIZER))
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

    def account(self) -> dict[str, Any]:
        """What became of every byte that was found; see prepare.account_of for the fields."""
        return {
            **self.manifest["account"],
            "fingerprint": self.fingerprint,
            "folder": str(self.folder.resolve()),
            "seconds": self.seconds,
            "reused": self.reused,
        }


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
    if verify_checksums:
        streams = [manifest["heldout"], *(source["train"] for source in manifest["sources"])]
        shards = {shard["file"]: shard["sha256"] for stream in streams for shard in stream["shards"]}
        verify(folder, {TOKENIZER: manifest["tokenizer_sha256"], **shards})
    return Prepared(folder, manifest)


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 over everything in a manifest but its own checksum."""
    return sha256_of({key: value for key, value in manifest.items() if key != "checksum"})


def sha256_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
