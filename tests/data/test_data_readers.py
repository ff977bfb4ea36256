"""One file -> documents: every ending, every compression, every kind of damage."""

import gzip
import io
import json
import lzma
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import json_records
from isoflop.data.corpus import describe
from isoflop.data.decompress import PIECE
from isoflop.data.json_records import lines
from isoflop.data.readers import read_documents
from isoflop.data.reading import Reading
from isoflop.data.tally import Tally
from isoflop.data.text import cut_pieces
from isoflop.errors import UserError

COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
STRETCHES = ["\n\n", "\r\n\r\n", "\r\r", "é" * 9_000, "word " * 9_000, "x" * 70_000, "\n"]
HARD = "BOM \ufeff CR LF\r\nlone CR\rNUL \x00 unassigned \u0378 combining e\u0301\n"


def read(path, column="text", strict=False):
    tally = Tally(strict=strict)
    return [d.decode() for d in read_documents(describe(path), column, tally)], tally


def parquet(texts, column="text"):
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({column: texts, "id": list(range(len(texts)))}), sink, row_group_size=2)
    return sink.getvalue()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", ["", ".txt", ".py", ".weird"])
def test_plain_text_of_any_ending_is_kept_to_the_byte(tmp_path, ending, compression):
    path = tmp_path / f"file{ending}{compression}"
    path.write_bytes(COMPRESS[compression](HARD.encode()))
    assert read(path)[0] == [HARD]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_records_stay_whole(tmp_path, kind, compression):
    texts = ["one", HARD, "long " * PIECE]
    content = parquet(texts) if kind == "parquet" else "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    path = tmp_path / f"file.{kind}{compression}"
    path.write_bytes(COMPRESS[compression](content))
    found, tally = read(path)
    assert found == texts and (tally.documents, tally.pieces) == (3, 3)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_compression_is_known_by_content_and_may_have_several_members(tmp_path, compression):
    compress = COMPRESS[compression]
    path = tmp_path / "no-ending"
    path.write_bytes(compress(b"first ") + compress(b"second"))
    assert read(path)[0] == ["first second"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.xz", "a.zst", "a.bz2"])
def test_an_unpacked_file_with_a_compressed_name_is_read(tmp_path, name):
    (tmp_path / name).write_bytes("plain text, ä".encode())
    assert read(tmp_path / name)[0] == ["plain text, ä"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("line", ['{"text": "one %d"}', '{"text": "two", "n": %d}'])
def test_records_are_read_whatever_their_name(tmp_path, name, line):
    (tmp_path / name).write_text("".join(line % n + "\n" for n in range(3)))
    assert len(read(tmp_path / name)[0]) == 3


def test_lines_that_are_strings_are_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('"one"\n"two"\n{"text": "three"}\n7\n')
    found, _ = read(tmp_path / "a.jsonl")
    assert found == ["one", "two", "three"]


def test_text_named_parquet_is_refused_with_advice_that_works(tmp_path):
    (tmp_path / "a.parquet").write_text("nothing but words\n" * 9)
    with pytest.raises(UserError, match=r"--set data\.format=text"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", Reading(format="text"))[0] == ["nothing but words\n" * 9]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("harm", ["truncated", "flipped", "nothing", "something else"])
def test_damaged_compression_is_one_line(tmp_path, compression, kind, harm):
    whole = COMPRESS[compression](b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(50_000)))
    middle = len(whole) // 2
    harmed = {
        "truncated": whole[:-20],
        "flipped": whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 40]) + whole[middle + 40 :],
        "nothing": b"",
        "something else": b"\x00\x01\x02 no text",
    }[harm]
    path = tmp_path / f"file.{kind}{compression}"
    path.write_bytes(harmed)
    with pytest.raises(UserError) as refused:
        read(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_long_text_is_cut_at_paragraph_ends_into_pieces_that_join_to_it(tmp_path, story):
    text = "".join(story(i, 20) + "\n" for i in range(150))
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8", newline="")
    pieces, tally = read(path)
    assert "".join(pieces) == text and tally.documents == 1 and tally.pieces == len(pieces)
    assert all(PIECE // 2 <= len(p) <= PIECE and p.endswith("\n\n") for p in pieces[:-1])


@pytest.mark.parametrize("unit", ["no newline at all ", "é", "中", "\U0001f600", "one line\n"])
def test_text_without_paragraphs_is_cut_between_characters(unit):
    content = (unit * (1 + 1_500_000 // len(unit.encode()))).encode()
    pieces = list(cut_pieces(content[i : i + 100_000] for i in range(0, len(content), 100_000)))
    assert b"".join(pieces) == content and max(map(len, pieces)) <= 4 * PIECE
    assert all(piece.decode() for piece in pieces)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(STRETCHES)), st.integers(1, 99_999))
def test_pieces_do_not_depend_on_the_blocks(parts, block):
    content = "".join(parts).encode()
    cut = [list(cut_pieces(content[i : i + n] for i in range(0, len(content), n))) for n in (block, 1 << 20)]
    assert cut[0] == cut[1] and b"".join(cut[0]) == content
    assert all(piece.decode() for piece in cut[0])


def test_appending_text_does_not_change_earlier_pieces(story):
    text = "".join(story(i, 20) + "\n" for i in range(100)).encode()
    before, after = list(cut_pieces([text])), list(cut_pieces([text + b"more\n\n" * 30_000]))
    assert after[: len(before) - 1] == before[:-1]


def test_memory_stays_constant_for_one_endless_line(tmp_path):
    path = tmp_path / "endless.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(60):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    total = sum(len(piece) for piece in read_documents(describe(path), "text", Tally()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 60 << 20 and peak < 12 << 20


def tar_of(content):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "binary"),
        (b"%PDF-1.7\nplain looking", "binary"),
        ("naïve".encode("utf-16-le"), "utf-16-le"),
        (b"\x04\x22\x4d\x18" + bytes(range(1, 200)), "lz4 -dc FILE"),
        ("caf\xe9 latin".encode("latin-1"), "not valid UTF-8 at byte 3"),
        (b"surrogate \xed\xa0\x80", "not valid UTF-8 at byte 10"),
    ],
)
def test_binary_files_are_skipped_and_counted_and_strict_refuses_them(tmp_path, content, reason):
    path = tmp_path / "file.dat"
    path.write_bytes(content)
    found, tally = read(path)
    assert found == [] and tally.skipped_files == 1 and tally.skipped_bytes == len(content)
    assert tally.skipped[0].path == str(path) and reason in tally.skipped[0].reason
    with pytest.raises(UserError, match=reason):
        read(path, strict=True)


def test_an_invalid_byte_in_a_long_text_skips_only_its_piece(tmp_path):
    paragraphs = [b"good words here\n\n" * 2000] * 10
    paragraphs[6] = b"bad \xff byte\n\n" * 2000
    path = tmp_path / "long.txt"
    path.write_bytes(b"".join(paragraphs))
    found, tally = read(path)
    assert tally.skipped_records > 0 and tally.skipped_files == 0
    assert sum(len(f.encode()) for f in found) + tally.skipped_bytes == path.stat().st_size
    assert not any("bad" in f and "\ufffd" in f for f in found)


def test_bad_records_are_counted_and_the_others_read(tmp_path):
    bad = [
        b'{"text": "\xff"}',
        b"{torn",
        b"[1]",
        b'{"text": null}',
        b'{"text": "\\ud83d"}',
        b'{"other": 1}',
        b'{"text": 3}',
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b'{"text": "first"}\n\n' + b"\n".join(bad) + b'\n{"text": "last"}')
    found, tally = read(path)
    assert found == ["first", "last"]
    assert tally.skipped_records == len(bad) and tally.skipped_bytes == sum(len(b) + 1 for b in bad)
    with pytest.raises(UserError, match="not valid UTF-8"):
        read(path, strict=True)


def test_an_overlong_record_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(json_records, "LONGEST_LINE", 1000)
    content = b"a\n" + b"x" * 5000 + b"\nb\n"
    found = list(lines(content[i : i + 300] for i in range(0, len(content), 300)))
    assert [line for line, size in found if size <= 1000 and line] == [b"a", b"b"]
    assert sum(size for line, size in found if size > 1000) == 5000


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_missing_text_column_names_the_present_ones_and_the_setting(tmp_path, kind, strict):
    path = tmp_path / f"file.{kind}"
    path.write_bytes(parquet(["x"], "body") if kind == "parquet" else b'{"body": "x", "id": 1}\n')
    with pytest.raises(UserError, match=r"columns are body, id.*--set data\.text_column="):
        read(path, strict=strict)
    assert read(path, column="body")[0] == ["x"]


def test_parquet_of_other_types(tmp_path):
    path = tmp_path / "file.parquet"
    pa.parquet.write_table(pa.table({"text": pa.array(["a", None, "a"]).dictionary_encode()}), path)
    found, tally = read(path)
    assert found == ["a", "a"] and tally.skipped_records == 1
    pa.parquet.write_table(pa.table({"text": pa.array([b"ok", b"\xff"])}), path)
    found, tally = read(path)
    assert found == ["ok"] and tally.skipped_records == 1
    pa.parquet.write_table(pa.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match="holds int64, not text"):
        read(path)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "text"])
def test_damaged_parquet_is_one_line(tmp_path, harm):
    whole = parquet([str(i) * 50 for i in range(2000)])
    path = tmp_path / "file.parquet"
    path.write_bytes(
        {"truncated": whole[:-50], "flipped": whole[:30] + b"\xff" * 200 + whole[230:], "text": b"hello"}[harm]
    )
    with pytest.raises(UserError) as refused:
        read(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_white_space_is_not_a_document(tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text('{"text": " \\n"}\n{"text": ""}\n{"text": "x"}\n')
    found, tally = read(path)
    assert found == ["x"] and tally.empty == 2
