"""The second rule of splitting: 0.5 to 2 % held out in many pieces, nothing on both sides, nothing lost."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.config import from_dict, to_dict
from isoflop.data.clean import digest_of
from isoflop.data.config import DataConfig
from isoflop.data.prepare import documents, prepare
from isoflop.data.stretches import KEPT, Nearest, Stretches, cut, piece_size
from isoflop.errors import UserError

WORDS = ["ship", "sailed", "past", "island", "storm", "while", "old", "captain", "sang", "of", "home", "bread", "rain"]


def config_of(*sources, **fields):
    return DataConfig(**{"sources": tuple(map(str, sources)), "vocab_size": 300, "workers": 1, **fields})


def texts_of(prepared, stream):
    tokens = stream[:].astype(np.int64)
    ends = np.flatnonzero(tokens == prepared.tokenizer.eot)
    return [prepared.tokenizer.decode(part[part != prepared.tokenizer.eot]) for part in np.split(tokens, ends + 1)[:-1]]


def sentences(draw: random.Random, size: int, end: str) -> str:
    parts, made = [], 0
    while made < size:
        parts.append(" ".join(draw.choices(WORDS, k=draw.randint(4, 16))) + f" {draw.randrange(10**6)}." + end)
        made += len(parts[-1])
    return "".join(parts)


# Cutting


@given(st.binary(max_size=4000), st.sampled_from([16, 32, 64, 256]))
def test_pieces_join_to_the_document(document, size):
    pieces = list(cut(document, size))
    assert b"".join(pieces) == document and all(pieces)
    assert all(len(piece) <= 4 * size + 1 for piece in pieces)
    assert all(len(piece) >= size // 2 for piece in pieces[:-1])


@given(st.text(st.sampled_from("aé日\n .🜁"), max_size=2000), st.sampled_from([16, 64]))
def test_pieces_of_text_are_text(text, size):
    assert "".join(piece.decode() for piece in cut(text.encode(), size)) == text


def test_pieces_end_with_lines_where_there_are_some():
    text = "".join(f"line {i} of many lines\n" for i in range(500)).encode()
    assert all(piece.endswith(b"\n") for piece in cut(text, 256))


@pytest.mark.parametrize("heldout", [0, 1, 40, 150, 4300, 130_000, 1e7, 1e12])
def test_pieces_are_many_and_not_too_short(heldout):
    size = piece_size(heldout)
    assert 16 <= size <= 64 * 1024 and size & (size - 1) == 0
    if heldout > 32_768:
        assert size >= 256 and heldout / size >= 100


# Choosing


def test_the_nearest_pieces_are_kept_with_all_their_copies():
    draw = random.Random(0)
    places = {b"%05d" % i: draw.random() for i in range(KEPT + 500)}
    stream = [digest for digest in places for _ in range(3)]
    draw.shuffle(stream)
    nearest = Nearest(below=False)
    for digest in stream:
        nearest.offer(digest, places[digest], 10, 0)
    kept = nearest.in_order()
    assert [digest for digest, _ in kept] == sorted(places, key=places.__getitem__)[:KEPT]
    assert all(near.copies == 3 for _, near in kept)


# corpora: documents of a few sorts, any number of them, some more than once
corpora = st.lists(
    st.tuples(
        st.sampled_from(["short", "lines", "paragraphs", "one line", "same line", "no blank"]),
        st.integers(1, 60_000),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=40,
)


def document_of(kind: str, size: int, seed: int) -> bytes:
    draw = random.Random(f"{kind} {seed}")
    if kind == "short":
        return sentences(draw, min(size, 300), " ").encode()
    if kind == "same line":
        return (f"the same line {seed % 5}\n" * (size // 16 + 1)).encode()
    if kind == "no blank":
        return bytes(draw.choices(b"abcdefgh", k=min(size, 5000)))
    return sentences(draw, size, {"lines": "\n", "paragraphs": "\n\n", "one line": " "}[kind]).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(corpora, st.integers(0, 3), st.sampled_from([0.01, 0.01, 0.05, 0.2]))
def test_the_share_is_right_and_every_byte_is_on_one_side(made, seed, fraction):
    whole = list(dict.fromkeys(document_of(*one) for one in made))
    total = sum(map(len, whole))
    stretches = Stretches(piece_size(fraction * total), fraction, seed)
    possible = [stretches.observe(number % 2, document) for number, document in enumerate(whole)]
    stretches.choose()

    held, trained, held_bytes = set(), set(), 0
    for document, may in zip(whole, possible, strict=True):
        dealt = list(stretches.sides(document))
        assert b"".join(text for _, text, _ in dealt) == document
        assert may or not any(side for side, *_ in dealt)
        for side, text, _ in dealt:
            if side:
                held_bytes += len(text) * (text not in held)
                held.add(text)
            else:
                trained |= set(cut(text, stretches.size)) if not may else {text}
    pieces = [piece for document in whole for piece in cut(document, stretches.size)]
    assert not held & {p for p in pieces if not stretches.is_held(p, digest_of(p))}
    assert held_bytes <= max(0.1, 1.25 * fraction) * total
    distinct = sum(map(len, set(pieces)))
    if distinct > 0.9 * total and total > 20_000:
        assert 0.5 * fraction <= held_bytes / total <= 2 * fraction
    if total > 50_000 and distinct > 0.9 * total:
        assert len(held) >= 2


def write(path: Path, kind: str, draw: random.Random) -> Path:
    if kind == "books":
        path.mkdir()
        for i in range(12):
            (path / f"{i}.txt").write_text(sentences(draw, 30_000, "\n" if i % 2 else "\n\n"))
    elif kind == "one document":
        path.write_text(sentences(draw, 15_000, "\n\n"))
    elif kind == "lines":
        path.write_text("".join(f"line {i}: the lamp near the river holds a letter\n" for i in range(9000)))
    elif kind == "records":
        path.with_suffix(".jsonl").write_text(
            "".join(json.dumps({"text": sentences(draw, draw.randint(5, 80), " ")}) + "\n" for _ in range(6000))
        )
        return path.with_suffix(".jsonl")
    elif kind == "one long record":
        path.with_suffix(".jsonl").write_text(json.dumps({"text": sentences(draw, 200_000, "\n")}) + "\n")
        return path.with_suffix(".jsonl")
    elif kind == "one line":
        path.write_text(sentences(draw, 100_000, " "))
    return path


KINDS = ["books", "one document", "lines", "records", "one long record", "one line"]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_has_a_held_out_side_of_the_right_size(tmp_path, kind, seed):
    source = write(tmp_path / "text", kind, random.Random(1))
    config = config_of(source, seed=seed)
    prepared = prepare(config)
    account = prepared.account()
    share = account.heldout.bytes / (account.heldout.bytes + account.train.bytes)
    assert 0.005 <= share <= 0.02 and f"{share:.1%} of the text" in account.heldout.how
    assert account.heldout.documents >= {"one document": 2, "one line": 3}.get(kind, 6)

    train = [text for name in prepared.sources for text in texts_of(prepared, prepared.train(name))]
    heldout = texts_of(prepared, prepared.heldout())
    assert account.train.documents == len(train) and account.heldout.documents == len(heldout)
    assert prepared.heldout_bytes == sum(len(text.encode()) for text in heldout) == account.heldout.bytes
    assert not set(train) & set(heldout)
    whole = "".join(documents(config)).encode()
    both = len("".join(train + heldout).encode())
    if account.in_heldout:  # copies of a held-out piece
        assert both < len(whole) - account.duplicate_bytes
    else:
        assert both == len(whole) - account.duplicate_bytes
    assert prepared.manifest["split"]["rule"] == 2 and prepared.manifest["split"]["piece_bytes"] >= 16


def test_the_result_depends_on_the_seed_only(tmp_path, monkeypatch):
    monkeypatch.setattr("isoflop.data.prepare.BYTES_PER_WORKER", 20_000)
    source = write(tmp_path / "text", "books", random.Random(2))
    one, many = (prepare(config_of(source, workers=n), tmp_path / f"p{n}") for n in (1, 3))
    other = prepare(config_of(source, seed=1))
    assert one.fingerprint == many.fingerprint != other.fingerprint
    assert set(texts_of(one, one.heldout())) != set(texts_of(other, other.heldout()))


def test_the_held_out_text_does_not_change_with_the_share_that_is_prepared(tmp_path):
    source = write(tmp_path / "text", "records", random.Random(3))
    whole, part = prepare(config_of(source)), prepare(config_of(source, max_train_bytes=200_000))
    assert texts_of(whole, whole.heldout()) == texts_of(part, part.heldout())
    account = part.account()
    assert account.train.bytes == pytest.approx(200_000, rel=0.25)
    assert account.heldout.bytes <= 0.1 * (account.heldout.bytes + account.train.bytes)


def test_weighted_sources_all_have_training_text(tmp_path):
    (tmp_path / "tiny.txt").write_text("a tiny source of its own\n")
    large = write(tmp_path / "text", "books", random.Random(4))
    for seed in range(20):
        prepared = prepare(config_of(f"{tmp_path}/tiny.txt:1", f"{large}:1", seed=seed, vocab_size=257))
        assert prepared.train_tokens("tiny") > 0


@pytest.mark.parametrize("text", ["one short document", "x", "no\n" * 3])
def test_too_little_text_is_refused_with_what_was_skipped(tmp_path, text):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a.txt").write_text(text)
    (tmp_path / "t/b.png").write_bytes(b"\x89PNG" + bytes(50))
    with pytest.raises(UserError, match=r"too little.*--heldout PATH; not used: 1 file, 54 bytes"):
        prepare(config_of(tmp_path / "t"))


def test_older_configurations_keep_the_first_rule():
    older = {key: value for key, value in to_dict(DataConfig()).items() if key != "split"}
    assert from_dict(DataConfig, older).split == 1
    assert from_dict(DataConfig, {"sources": ["a"]}).split == 2 == DataConfig().split
    with pytest.raises(UserError, match=r"data\.split"):
        prepare(DataConfig(split=3))
