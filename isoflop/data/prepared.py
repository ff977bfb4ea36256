"""Prepared text: a folder with token files, a tokenizer and a manifest."""

from pathlib import Path
from typing import Any

from isoflop.data.manifest import MANIFEST, Format, PreparedFolder, Shards, read_manifest
from isoflop.data.shards import TokenStream, check_stream, damaged, dtype_for, field

FORMAT = Format(
    name="isoflop-data",
    version=1,
    what="data",
    absent=f"holds no prepared data: there is no {MANIFEST}; make it with `isoflop prepare SOURCE --out DIR`",
)


class Prepared(PreparedFolder):
    """Tokens with random access. The fingerprint covers the tokens of each source and of the held-out text, the weights
    and the tokenizer.

    Attributes:
        sources: names, in the order given.
        heldout_bytes: bytes of text in the held-out documents.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], seconds: float = 0.0, reused: bool = True) -> None:
        super().__init__(folder, manifest, seconds, reused)
        self.dtype = dtype_for(self.vocab_size)
        self.heldout_bytes: int = manifest["heldout"]["bytes"]
        self._sources: dict[str, dict[str, Any]] = {source["name"]: source for source in manifest["sources"]}
        self.sources: tuple[str, ...] = tuple(self._sources)

    def train_tokens(self, source: str) -> int:
        return int(self._sources[source]["train"]["tokens"])

    def weights(self) -> dict[str, float]:
        """The share of each source of the training tokens, as given, else in proportion to its tokens. The sum is 1."""
        given = {name: source["weight"] for name, source in self._sources.items()}
        if all(weight is not None for weight in given.values()):
            return given
        total = sum(self.train_tokens(name) for name in self.sources)
        return {name: self.train_tokens(name) / total for name in self.sources}

    def train(self, source: str) -> TokenStream:
        """The training tokens of a source: its documents in the order of its files, each followed by end-of-text."""
        return TokenStream.open(self.folder, self._sources[source]["train"], self.dtype)

    def heldout(self) -> TokenStream:
        """The tokens of all held-out documents, each followed by end-of-text."""
        return TokenStream.open(self.folder, self.manifest["heldout"], self.dtype)


def open_prepared(folder: Path, verify_checksums: bool = True) -> Prepared:
    """Open prepared data.

    Raises:
        UserError: if a file is missing, has another format version, or has a single flipped bit.
    """
    folder = Path(folder)
    return Prepared(folder, read_manifest(folder, FORMAT, check_manifest, verify_checksums))


def check_manifest(manifest: dict[str, Any], path: Path) -> Shards:
    """Check the fields that Prepared reads. Returns the token files with their SHA-256 and bytes.

    Raises:
        UserError: naming the first field with a value that `prepare` cannot have written.
    """
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
        raise damaged(path, "the weight of a source is not in (0, 1]")
    for source in sources:
        shards |= check_stream(field(source, "train", dict, path), path, ids)
    if not manifest["heldout"]["tokens"] or not sum(source["train"]["tokens"] for source in sources):
        raise damaged(path, "there is nothing to train on or nothing held out")
    return shards
