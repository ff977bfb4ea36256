"""What happens inside nanochat's own environment (peer_nanochat.py starts it): its modules are imported, not changed.

    python bench/inside_nanochat.py lacking
    python bench/inside_nanochat.py documents TEXTS FOLDER
    python bench/inside_nanochat.py pieces TEXTS FOLDER CONTEXT SEED
    python bench/inside_nanochat.py train SEED true|false WORD ...
    python bench/inside_nanochat.py judge TEXTS FOLDER STEP CONTEXT

TEXTS is a folder with train.jsonl and heldout.jsonl, FOLDER what nanochat calls NANOCHAT_BASE_DIR. The last line of
output is the answer, as JSON. Nothing of isoflop is imported: the environment need not have it.
"""

import importlib.util
import json
import math
import random
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# module -> package, of what nanochat imports on the way of these tasks
NEEDED = {
    "torch": "torch",
    "pyarrow": "pyarrow",
    "rustbpe": "rustbpe",
    "tiktoken": "tiktoken",
    "wandb": "wandb",
    "requests": "requests",
    "filelock": "filelock",
    "yaml": "pyyaml",
    "jinja2": "jinja2",
}
SHARDS = "base_data_climbmix"  # where its dataset.py looks for shards, of which the last is for validation
TAG = "race"  # of its checkpoints
ROWS = 1024  # documents in a row group
SLACK = 4  # tokens by which a piece may be longer than asked for, for the sake of ending where a word does
AT_ONCE = 8192  # ids that are judged at once


def lacking() -> list[str]:
    """The packages that nanochat needs and this environment does not have."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


def documents(texts: str, folder: str) -> dict[str, int]:
    """Both sides as shards of whole documents, for its tok_train."""
    return write_shards(Path(folder), read_texts(texts, "train"), read_texts(texts, "heldout"))


def pieces(texts: str, folder: str, context: str, seed: str) -> dict[str, int]:
    """The training side cut into pieces that fill a row of its loader, in random order; the other side as it is.

    Its loader packs documents into rows of `context` + 1 ids that begin with BOS, and drops what is left of a document
    that does not fit. Of a book that would be nearly all of it.
    """
    tokenizer = own_tokenizer()
    spelled = cache(tokenizer.decode_single_token_bytes)
    cut: list[str] = []
    for text in read_texts(texts, "train"):
        cut += cut_into_pieces(text, map(spelled, tokenizer.encode(text)), int(context))
    random.Random(int(seed)).shuffle(cut)
    return write_shards(Path(folder), cut, read_texts(texts, "heldout"))


def cut_into_pieces(text: str, tokens: Iterable[bytes], least: int) -> Iterator[str]:
    """Cut a document into pieces of at least `least` tokens; only the last may have fewer.

    A piece ends where the next token begins with white space, so that its own tokens stay what they are. If there is no
    such place within SLACK tokens it ends between two characters, with tokens to spare.

    Args:
        tokens: the bytes of the document's tokens, in order.
    """
    data = text.encode()
    first = place = count = 0
    for token in tokens:
        over = count - least
        if over >= 0 and not is_inside_character(token) and (over >= SLACK or token[:1].isspace()):
            yield data[first:place].decode()
            first, count = place, 0
        place += len(token)
        count += 1
    if first < len(data):
        yield data[first:].decode()


def is_inside_character(token: bytes) -> bool:
    """Whether a token's first byte continues a UTF-8 character."""
    return token[0] & 0xC0 == 0x80


def write_shards(folder: Path, train: list[str], heldout: list[str]) -> dict[str, int]:
    import pyarrow
    from pyarrow import parquet

    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    for number, side in enumerate((train, heldout)):
        table = pyarrow.table({"text": side})
        parquet.write_table(table, folder / SHARDS / f"shard_{number:05d}.parquet", row_group_size=ROWS)
    return {"train": len(train), "heldout": len(heldout)}


def read_texts(folder: str, side: str) -> list[str]:
    with (Path(folder) / f"{side}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def own_tokenizer() -> Any:
    from nanochat.tokenizer import get_tokenizer

    return get_tokenizer()


def train(seed: str, compiled: str, *words: str) -> None:
    """Its base_train. That always begins with the same random numbers: here `seed` is added to its seed. Unless
    `compiled` is "true", torch.compile returns what it is given (torch's own switch refuses whole graphs, which its
    optimiser asks for)."""
    import torch

    usual = torch.manual_seed
    torch.manual_seed = lambda number: usual(number + int(seed))
    if compiled != "true":
        torch.compile = as_it_is
    sys.argv = ["base_train", *words]
    runpy.run_module("scripts.base_train", run_name="__main__", alter_sys=True)


def as_it_is(what: Any = None, **options: Any) -> Any:
    """In place of torch.compile, called or as a decorator with options."""
    return (lambda what: what) if what is None else what


def judge(texts: str, folder: str, step: str, context: str) -> dict[str, float]:
    """Bits per byte of the held-out side, in two kinds of windows: `begun`, each with BOS in front, as in its training;
    and `running`, one after the other through the documents with a BOS between them, which is predicted as well."""
    import torch
    from nanochat.checkpoint_manager import build_model
    from nanochat.tokenizer import get_token_bytes

    model, tokenizer, _ = build_model(
        str(Path(folder) / "base_checkpoints" / TAG), int(step), torch.device("cpu"), "eval"
    )
    bos, sizes, length = tokenizer.get_bos_token_id(), get_token_bytes("cpu"), int(context)
    held = read_texts(texts, "heldout")
    ids = [tokenizer.encode(text) for text in held]
    size = sum(len(text.encode()) for text in held)
    found: dict[str, float] = {"bytes": size}
    for name, windows in (("begun", begun(ids, bos, length)), ("running", running(ids, bos, length))):
        nats, covered = summed(model, list(windows), sizes)
        if covered != size:
            raise RuntimeError(f"the {name} windows cover {covered} bytes of the {size} held out")
        found[name] = nats / math.log(2) / size
    return found


def begun(documents: Iterable[Sequence[int]], first: int, context: int) -> Iterator[list[int]]:
    """Windows of at most `context` + 1 ids that begin with `first` and go on with ids of one document: all of its ids,
    each once."""
    for ids in documents:
        for place in range(0, len(ids), context):
            yield [first, *ids[place : place + context]]


def running(documents: Iterable[Sequence[int]], first: int, context: int) -> Iterator[list[int]]:
    """Windows of at most `context` + 1 ids, one after the other through all documents, with `first` in front of each
    document and at the end. The last id of a window is the first of the next, so that each but the very first is
    predicted once."""
    stream = [first]
    for ids in documents:
        stream += [*ids, first]
    for place in range(0, len(stream) - 1, context):
        yield stream[place : place + context + 1]


def summed(model: Any, windows: list[list[int]], sizes: Any) -> tuple[float, int]:
    """Nats of all ids but the first of each window, and the bytes that these stand for."""
    import torch

    nats, covered, ordered = 0.0, 0, sorted(windows, key=len, reverse=True)
    while ordered:
        width = max(2, len(ordered[0]) - 1)  # its forward refuses inputs of one id
        rows, ordered = ordered[: max(1, AT_ONCE // width)], ordered[max(1, AT_ONCE // width) :]
        inputs = torch.zeros(len(rows), width, dtype=torch.long)
        targets = torch.full((len(rows), width), -1)  # -1: what its loss leaves out
        for row, window in enumerate(rows):
            inputs[row, : len(window) - 1] = torch.tensor(window[:-1])
            targets[row, : len(window) - 1] = torch.tensor(window[1:])
        with torch.no_grad():
            nats += float(model(inputs, targets, loss_reduction="none").double().sum())
        covered += int(sizes[targets[targets >= 0]].sum())
    return nats, covered


TASKS: dict[str, Callable[..., Any]] = {
    "lacking": lacking,
    "documents": documents,
    "pieces": pieces,
    "train": train,
    "judge": judge,
}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
