"""Formats are detected by content: each layout under any name, with any beginning, and on standard input."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import sys
import tarfile
import tracemalloc
import zipfile
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import corpus, decompress, json_records
from isoflop.data.config import DataConfig
from isoflop.data.corpus import describe
from isoflop.data.decompress import UNPACKING
from isoflop.data.encodings import ICONV, to_utf8
from isoflop.data.json_records import values
from isoflop.data.prepare import documents, prepare
from isoflop.data.readers import read_documents
from isoflop.data.reading import Reading
from isoflop.data.tally import Tally
from isoflop.data.text import SEPARATORS, cut_pieces, separated
from isoflop.errors import UserError

TEXTS = ["one, with a comma", 'two "quoted"\nand a second line', "three é 中 \U0001f600", "[4]", "five\ttab"]
BOM = b"\xef\xbb\xbf"
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def read(path, how="text", strict=False):
    tally = Tally(strict=strict)
    return [d.decode() for d in read_documents(describe(path), how, tally)], tally


def records(texts=TEXTS, column="text"):
    return [{"id": n, column: text, "meta": {"a": [1, {}]}} for n, text in enumerate(texts)]


def table_text(delimiter=",", column="text", texts=TEXTS):
    sink = io.StringIO(newline="")
    rows = csv.writer(sink, delimiter=delimiter)
    rows.writerow(["id", column])
    rows.writerows(enumerate(texts))
    return sink.getvalue().encode()


def stream_of(table):
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def arrow_file(table):
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def parquet_of(table):
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink)
    return sink.getvalue()


def table_of(texts=TEXTS, column="text"):
    return pa.table({"id": range(len(texts)), column: texts})


LAYOUTS = {
    "lines": b"".join(json.dumps(one).encode() + b"\n" for one in records()),
    "lines, CR LF": b"".join(json.dumps(one).encode() + b"\r\n" for one in records()),
    "lines, not escaped": b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in records()),
    "array in one line": json.dumps(records()).encode(),
    "array, indented": json.dumps(records(), indent=2).encode(),
    "array, one in a line": b"[\n" + b",\n".join(json.dumps(one).encode() for one in records()) + b"\n]\n",
    "array of texts": json.dumps(TEXTS, indent=0).encode(),
    "objects, indented": b"\n".join(json.dumps(one, indent=4).encode() for one in records()),
    "objects, one after another": b"".join(json.dumps(one, indent=1).encode() for one in records()),
}
BINARY = {
    "parquet": parquet_of(table_of()),
    "arrow stream": stream_of(table_of()),
    "arrow file": arrow_file(table_of()),
}


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".txt", ".ndjson", ".jsonl.bz2", "", ".weird.xz", ".txt.zst"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("start", [b"", BOM, b"\n", b" \r\n\n", BOM + b"\n"])
def test_json_of_any_layout_under_any_name(tmp_path, layout, ending, start):
    path = tmp_path / f"data{ending}"
    compress = COMPRESS.get("." + ending.rpartition(".")[2], bytes)
    path.write_bytes(compress(start + LAYOUTS[layout]))
    found, tally = read(path)
    assert found == TEXTS
    assert (tally.documents, tally.skipped_files, tally.skipped_records, tally.skipped_bytes) == (5, 0, 0, 0)


@pytest.mark.parametrize("layout", [*LAYOUTS, *BINARY])
@pytest.mark.parametrize("start", [b"", BOM + b"\n"])
def test_any_layout_on_standard_input(monkeypatch, layout, start):
    class Stdin:
        buffer = io.BytesIO((start if layout in LAYOUTS else b"") + {**LAYOUTS, **BINARY}[layout])

    monkeypatch.setattr(corpus, "_spooled", {})
    monkeypatch.setattr(sys, "stdin", Stdin())
    assert list(documents(DataConfig(sources=("-",)))) == TEXTS


@pytest.mark.parametrize("layout", BINARY)
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["data.arrow", "data", "data.txt"])
def test_columns_under_any_name(tmp_path, layout, compression, name):
    path = tmp_path / f"{name}{compression}"
    path.write_bytes(COMPRESS[compression](BINARY[layout]))
    assert read(path)[0] == TEXTS


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "a package", "version": 3}\n',
        '{\n  "name": "a package",\n  "version": 3\n}\n',
        '{"compact": {"of": "one line"}}',
        "{not JSON} at all\n{neither}\n",
        "{\n  this is C\n}\n",
        "[1, 2, 3]\n[4]\n",
        "[a link](https://example) and more\n",
        '["one string in brackets"]\n',
        '["a", "b"] is how Python writes it\n',
        "[section]\nkey = value\n",
        "text, and nothing else\nsecond line\n",
        "a,text\nof two lines, with a comma, and another\nand so on\nand so on\n",
        "text\nunder a title\n",
        '"text","in quotes" goes on\n',
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".json", ""])
def test_text_that_only_resembles_records_is_text(tmp_path, text, ending):
    path = tmp_path / f"file{ending}"
    path.write_text(text)
    found, tally = read(path)
    assert found == [text] and tally.skipped_files == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)), st.integers(1, 50), st.booleans())
def test_elements_do_not_depend_on_the_blocks(texts, block, ascii_only):
    elements = [{"text": text, "n": {"deep": [len(text)]}} for text in texts]
    content = json.dumps(elements, ensure_ascii=ascii_only, indent=1).encode()
    found = list(values(content[i : i + block] for i in range(0, len(content), block)))
    assert [value for value, _, reason in found if not reason] == elements == [value for value, _, _ in found]


def test_one_line_of_two_gigabytes_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(json_records, "LONGEST_LINE", 1 << 20)

    def blocks():
        yield b'[{"text": "short"}, {"text": "'
        for _ in range(200):
            yield b"x" * (1 << 20)
        yield b'"}, {"text": "lost"}]'

    tracemalloc.start()
    found = list(values(blocks()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20
    assert found[0][0] == {"text": "short"} and len(found) == 2
    assert "longer than 1 MiB" in found[1][2] and found[1][1] > 200 << 20  # all that follows is counted


def test_a_torn_array_keeps_what_came_before(tmp_path):
    path = tmp_path / "torn.json"
    whole = json.dumps(records()).encode()
    path.write_bytes(whole[:-40])
    found, tally = read(path)
    assert found == TEXTS[:-1] and tally.skipped_records == 1 and tally.skipped_bytes > 0
    with pytest.raises(UserError, match="not JSON"):
        read(path, strict=True)


def test_bad_elements_of_an_array_do_not_affect_others(tmp_path):
    path = tmp_path / "mixed.json"
    path.write_bytes(
        b'[{"text": "a"}, {"text": null}, 7, {"other": 1}, {"text": "\xff"}, {"text": "\\ud83d"}, {"text": "b"}]'
    )
    found, tally = read(path)
    assert found == ["a", "b"] and tally.skipped_records == 5


@pytest.mark.parametrize("indent", [None, 2])
def test_columns_in_one_object_are_named_with_the_way_out(tmp_path, indent):
    """What pandas writes with `to_json`, unless it is told to write records."""
    path = tmp_path / "data.json"
    columns = {"text": {str(n): f"text {n}" for n in range(9)}, "id": {str(n): n for n in range(9)}}
    path.write_text(json.dumps(columns, indent=indent))
    found, tally = read(path)
    reason = tally.skipped[0].reason
    assert found == [] and "as pandas' to_json writes them" in reason and 'orient="records", lines=True' in reason
    path.write_text("\n".join(json.dumps({name: columns[name][str(n)] for name in columns}) for n in range(9)))
    assert read(path)[0] == list(columns["text"].values())


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_records_without_the_column_are_skipped_with_advice(tmp_path, layout):
    content = records(column="content")
    path = tmp_path / "data.json"
    path.write_text(json.dumps(content) if layout == "array" else "".join(json.dumps(one) + "\n" for one in content))
    found, tally = read(path)
    assert found == [] and (tally.skipped_files, tally.skipped_bytes) == (1, path.stat().st_size)
    assert f"{path}@content" in tally.skipped[0].reason and "id, content, meta" in tally.skipped[0].reason
    assert read(path, "content")[0] == TEXTS
    assert read(path, Reading(format="text"))[0] == [path.read_text()]
    with pytest.raises(UserError, match="no text column 'text'"):
        prepare(DataConfig(sources=(str(path),), vocab_size=300))


# Tables


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".txt", ""])
@pytest.mark.parametrize("start", [b"", BOM])
def test_tables(tmp_path, delimiter, ending, start):
    path = tmp_path / f"table{ending}"
    path.write_bytes((gzip.compress if ending.endswith("gz") else bytes)(start + table_text(delimiter)))
    found, tally = read(path)
    assert found == TEXTS and tally.documents == 5 and tally.skipped_bytes == 0


def test_tabs_without_quotes(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text('id\ttext\n1\t"Yes," he said\n2\tAn inch is 1"\n3\t"\n')
    assert read(path)[0] == ['"Yes," he said', 'An inch is 1"', '"']


def test_a_row_of_another_width_is_skipped_and_counted(tmp_path):
    path = tmp_path / "table.csv"
    rows = [f"{n},text number {n}" for n in range(30)]
    path.write_text("\n".join(["id,text", *rows, "31,not, quoted", "32", '33,"last"\n']))
    found, tally = read(path)
    assert len(found) == 31 and found[-1] == "last"
    assert tally.skipped_records == 2 and tally.skipped_bytes == len("31,not, quoted\n32\n")


def test_a_table_without_the_column_names_the_others(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(table_text(column="review"))
    found, tally = read(path)
    assert found == [] and tally.skipped_files == 1 and f"{path}@review" in tally.skipped[0].reason
    assert read(path, "review")[0] == TEXTS


def test_a_long_field_and_a_quote_that_never_ends(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(table_text(texts=["short", "long " * 100_000]))
    assert [len(text) for text in read(path)[0]] == [5, 500_000]
    path.write_bytes(table_text(texts=["short", "another"]) + b'3,"never ends\n4,x\n')
    found, tally = read(path)
    assert found == ["short", "another"] and tally.skipped_records == 1


# Columns


@pytest.mark.parametrize("kind", ["parquet", "arrow stream", "arrow file"])
@pytest.mark.parametrize(
    "texts",
    [
        pa.array(["a", None, "é"], pa.string()),
        pa.array(["a", None, "é"], pa.large_string()),
        pa.array(["a", None, "é"], pa.string_view()),
        pa.array([b"a", None, "é".encode()], pa.binary()),
        pa.array([b"a", None, "é".encode()], pa.large_binary()),
        pa.array([b"a", None, "é".encode()], pa.binary_view()),
        pa.array(["a", None, "é"]).dictionary_encode(),
        pa.array(["a", None, "é"], pa.large_string()).dictionary_encode(),
        pa.array([b"a", None, "é".encode()]).dictionary_encode(),
        pa.ExtensionArray.from_storage(pa.json_(), pa.array(["a", None, "é"])),
    ],
    ids=lambda texts: str(texts.type),
)
def test_every_type_of_text(tmp_path, kind, texts):
    path = tmp_path / "data"
    write = {"parquet": parquet_of, "arrow stream": stream_of, "arrow file": arrow_file}[kind]
    path.write_bytes(write(pa.table({"id": [1, 2, 3], "text": texts})))
    found, tally = read(path)
    assert found == ["a", "é"] and tally.skipped_records == 1 and "holds nothing" in tally.skipped[0].reason


def test_runs_and_bytes_of_one_width(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(stream_of(pa.table({"text": pa.array([b"abc", b"\xff\xff\xff"], pa.binary(3))})))
    found, tally = read(path)
    assert found == ["abc"] and tally.skipped_records == 1
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", "y"]))
    path.write_bytes(stream_of(pa.table({"text": runs})))
    assert read(path)[0] == ["x", "x", "y"]


@pytest.mark.parametrize("write", [parquet_of, stream_of, arrow_file])
def test_columns_without_text(tmp_path, write):
    path = tmp_path / "data"
    path.write_bytes(write(pa.table({"text": [1, 2], "body": ["a", "b"]})))
    with pytest.raises(UserError, match="holds int64, not text"):
        read(path)
    with pytest.raises(UserError, match=r"columns are text, body: name one with the source, as in .*@body"):
        read(path, "none")


@pytest.mark.parametrize("write", [parquet_of, stream_of, arrow_file])
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_a_column_of_lists_says_how_to_join_them(tmp_path, write, kind):
    path = tmp_path / "data"
    lists = pa.array([["a", "b"], ["c"]], kind(pa.string()))
    path.write_bytes(write(pa.table({"text": lists, "id": ["1", "2"]})))
    with pytest.raises(
        UserError, match=r"holds (large_)?list<.*, not text: join each .* pyarrow\.compute\.binary_join"
    ):
        read(path)
    path.write_bytes(write(pa.table({"text": pa.compute.binary_join(lists, "\n")})))
    assert read(path)[0] == ["a\nb", "c"]
    path.write_bytes(write(pa.table({"text": [[1], [2]]})))
    with pytest.raises(UserError, match="not text: write the text of each record into one column first"):
        read(path)


@pytest.mark.parametrize("write", [stream_of, arrow_file])
@pytest.mark.parametrize("cut", [9, 60, 400, -30])
def test_a_truncated_arrow_file_is_one_line(tmp_path, write, cut):
    path = tmp_path / "data.arrow"
    path.write_bytes(write(table_of([text * 20 for text in TEXTS]))[:cut])
    try:
        read(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_a_folder_of_save_to_disk(tmp_path):
    """As `datasets` lays it out: streams in .arrow files, with their description in JSON next to them."""
    for split, texts in (("train", TEXTS[:3]), ("test", TEXTS[3:])):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        (folder / "data-00000-of-00001.arrow").write_bytes(stream_of(table_of(texts)))
        (folder / "state.json").write_text(
            '{\n  "_data_files": [\n    {"filename": "data-00000-of-00001.arrow"}\n  ]\n}'
        )
        (folder / "dataset_info.json").write_text('{\n  "citation": "",\n  "features": {}\n}')
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = list(documents(DataConfig(sources=(str(tmp_path / "set"),))))
    assert set(TEXTS) <= set(found)


# Archives


def zip_of(members, method=zipfile.ZIP_DEFLATED):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def tar_of(members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


MEMBERS = {
    "a.txt": b"plain text\n",
    "folder/b.jsonl": LAYOUTS["lines"],
    "folder/c.json.gz": gzip.compress(LAYOUTS["array, indented"]),
    "../outside.csv": table_text(),
    "/absolute.parquet": BINARY["parquet"],
    "deep/er/d.arrow.xz": lzma.compress(BINARY["arrow stream"]),
    "latin.txt": "café crème".encode("utf-16"),
    ".hidden": b"not read",
    "__MACOSX/._a.txt": b"not read",
    "folder/.DS_Store": b"not read",
}


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["texts.zip", "texts.tar", "texts"])
def test_archives_are_read_without_unpacking(tmp_path, pack, compression, name):
    path = tmp_path / "in" / f"{name}{compression}"
    path.parent.mkdir()
    path.write_bytes(COMPRESS[compression](pack(MEMBERS)))
    found, tally = read(path)
    assert found == ["plain text\n", *(5 * TEXTS), "café crème"] and tally.skipped_files == 0
    assert [file.name for file in path.parent.iterdir()] == [path.name] and not (tmp_path / "outside.csv").exists()


def test_members_of_an_archive_that_are_not_read_are_counted(tmp_path):
    members = {"a.txt": b"text", "b.png": b"\x89PNG" + bytes(50), "c.zip": zip_of({"d.txt": b"inner"})}
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of(members, zipfile.ZIP_STORED))
    found, tally = read(path)
    assert found == ["text"] and tally.skipped_files == 2
    assert [skip.path for skip in tally.skipped] == [f"{path}/b.png", f"{path}/c.zip"]
    assert "inside an archive" in tally.skipped[1].reason


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}, "Microsoft Office"),
        ({"mimetype": b"application/epub+zip", "a.xhtml": b"<x/>"}, "e-book"),
        ({"archive/data.pkl": b"x", "archive/version": b"3"}, "PyTorch"),
    ],
)
def test_documents_that_are_zips_inside_are_named(tmp_path, members, what):
    path = tmp_path / "file"
    path.write_bytes(zip_of(members))
    found, tally = read(path)
    assert found == [] and tally.skipped_files == 1 and what in tally.skipped[0].reason


def test_links_and_devices_in_a_tar_are_counted(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        device = tarfile.TarInfo("device")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    found, tally = read(path)
    assert found == ["text"] and tally.skipped_files == 2


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("harm", ["truncated", "middle", "header"])
def test_a_damaged_archive_is_one_line(tmp_path, pack, harm):
    whole = bytearray(pack({f"{n}.txt": f"text number {n} ".encode() * 400 for n in range(9)}))
    path = tmp_path / "a"
    if harm == "truncated":
        del whole[len(whole) // 2 - 100 :]
    elif harm == "middle":
        whole[300:340] = b"\xff" * 40
    else:
        place = 6144 if pack is tar_of else whole.rindex(b"PK\x01\x02")
        whole[place : place + 30] = b"\xee" * 30
    path.write_bytes(bytes(whole))
    if pack is tar_of and harm == "middle":
        whole[148:156] = b"0000000\0"
        path.write_bytes(bytes(whole))
    with pytest.raises(UserError) as refused:
        read(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_tar_cut_between_two_files_is_noticed(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({"a.txt": b"text", "b.txt": b"lost"})[:1024])
    found, tally = read(path)
    assert found == ["text"] and "may be truncated" in next(iter(tally.notes))


def test_free_disk_space_is_checked_before_unpacking(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(BINARY["parquet"]))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"has to be unpacked.*ISOFLOP_HOME"):
        read(path)


# Compressions


def test_several_streams_of_bzip2(tmp_path):
    path = tmp_path / "no-ending"
    path.write_bytes(bz2.compress(b"first ") + bz2.compress(b"second") + b"\0" * 7)
    assert read(path)[0] == ["first second"]
    path.write_bytes(bz2.compress(b"first " * 1000)[:-5])
    with pytest.raises(UserError, match="truncated"):
        read(path)
    path.write_bytes(bz2.compress(b"first") + b"what is this")
    with pytest.raises(UserError, match="bzip2 data cannot be read"):
        read(path)
    path.write_bytes(b"BZh is how this text begins")
    assert read(path)[0] == ["BZh is how this text begins"]


def test_a_window_that_is_too_large_is_not_called_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(decompress, "ZSTD_WINDOW", 1 << 20)
    monkeypatch.setattr("builtins.max", lambda *numbers: numbers[0] if len(numbers) == 2 else sorted(*numbers)[-1])
    parameters = zstandard.ZstdCompressionParameters(window_log=24, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.txt.zst"
    path.write_bytes(compressor.compress(b"some text") + compressor.flush())
    with pytest.raises(UserError, match=r"window of 16 MiB.*zstd -dc --long=31") as refused:
        read(path)
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"\x04\x22\x4d\x18", "lz4 -d"),
        (b"7z\xbc\xaf\x27\x1c", "7z x"),
        (b"Rar!\x1a\x07", "unrar"),
        (b"LZIP\x01", "lzip -d"),
        (b"\x1f\x9d\x90", "gzip -dc"),
        (b"%PDF-1.5", "pdftotext"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, start, reason):
    path = tmp_path / "file"
    path.write_bytes(start + bytes(range(200)))
    found, tally = read(path)
    assert found == [] and reason in tally.skipped[0].reason


@pytest.mark.parametrize("outer", ["gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("inner", ["gzip", "zstd"])
def test_what_is_compressed_twice_is_to_be_unpacked_once(tmp_path, outer, inner):
    compress = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstandard.compress}
    path = tmp_path / "a.txt"
    path.write_bytes(compress[outer](compress[inner](b"some text\n" * 90)))
    found, tally = read(path)
    reason = tally.skipped[0].reason
    assert found == [] and f"compressed twice, by {inner} and then by {outer}" in reason
    assert f"unpack it once first: {UNPACKING[outer]} FILE > NEW" in reason


# Encodings

FRENCH = "Le café près de la forêt était fermé. « Déjà ? » dit-elle.\n" * 50
SAMPLES = {
    "latin-1": FRENCH,
    "cp1252": FRENCH.replace("«", "“").replace("»", "”") + "It’s 5 € – or so…\n",
    "cp1251": "Москва, столица России, стоит на реке. Он пошёл домой и лёг спать.\n" * 40,
    "koi8-r": "Москва, столица России, стоит на реке. Он пошел домой и лег спать.\n" * 40,
    "cp1250": "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.\n" * 40,
    "cp1253": "Η γλώσσα είναι το όργανο της σκέψης και της ψυχής του ανθρώπου.\n" * 40,
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 40,
    "euc_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 40,
    "euc_kr": "나는 학교에 가는 길에 고양이를 보았다. 그것은 우리의 고양이다.\n" * 40,
    "gb18030": "我们的学生在这里学习,他是一个好人,不知道怎么了,要去大家的家。\n" * 40,
    "big5": "我們的學生在這裡學習,他是一個好人,不知道怎麼了,要去大家的家。\n" * 40,
    "utf-16-le": "wide text\n" * 40,
    "utf-16-be": "wide text with é\n" * 40,
    "utf-32-le": "wider text\n" * 40,
    "utf-32-be": "wider text\n" * 40,
}


@pytest.mark.parametrize("encoding", SAMPLES)
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_a_text_in_another_encoding_is_reported_with_two_solutions(tmp_path, encoding, compression):
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESS[compression](SAMPLES[encoding].encode(encoding)))
    found, tally = read(path)
    assert found == [] and tally.skipped_files == 1
    reason = tally.skipped[0].reason
    assert f"it seems to be {encoding}: read it with --set data.encoding={encoding}" in reason
    name = ICONV.get(encoding, encoding.upper())
    assert f"iconv -f {name} -t UTF-8" in reason and ("gzip -dc FILE |" in reason) == bool(compression)
    assert read(path, Reading(encoding=encoding))[0] == [SAMPLES[encoding]]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize("text", ["plain\r\nwith é and 中 \U0001f600\n", LAYOUTS["array of texts"].decode()])
def test_a_byte_order_mark_is_enough(tmp_path, encoding, order, text):
    path = tmp_path / "a.txt"
    path.write_bytes(("\ufeff" + text).encode(f"{encoding}-{order}"))
    found, tally = read(path)
    assert found == (TEXTS if text.startswith("[") else [text])
    assert tally.notes == {f"it was read as {encoding}": [str(path)]}


@pytest.mark.parametrize("layout", ["lines, not escaped", "table"])
def test_records_in_another_encoding(tmp_path, layout):
    texts = ["café crème très chère", "déjà vu, dit-elle"]
    if layout == "table":
        content = table_text(texts=texts).decode().encode("latin-1")
    else:
        content = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records(texts)).encode("latin-1")
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    found, tally = read(path)
    assert found == [] and tally.skipped_records == 2 and "it seems to be latin-1" in tally.skipped[0].reason
    assert read(path, Reading(encoding="latin-1"))[0] == texts


def test_utf8_stays_utf8_whatever_encoding_is_named(tmp_path):
    for name, content in (("a", FRENCH), ("b", "plain\n" * 40_000 + FRENCH), ("c", "plain\n")):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        for encoding in ("latin-1", "utf-16-le", "gb18030"):
            assert "".join(read(path, Reading(encoding=encoding))[0]) == content


def test_an_encoding_that_begins_late(tmp_path):
    content = "plain\n" * 400_000 + FRENCH
    path = tmp_path / "late.txt"
    path.write_bytes(content.encode("latin-1"))
    assert "".join(read(path, Reading(encoding="latin-1"))[0]) == content


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="cp1252"), min_size=1),
    st.sampled_from(["cp1252", "utf-16-le", "utf-32-be", "gb18030"]),
    st.integers(1, 7),
)
def test_decoding_does_not_depend_on_the_blocks(text, encoding, block):
    content = f"é {text}".encode(encoding)  # the beginning is no UTF-8
    decoded = b"".join(to_utf8((content[i : i + block] for i in range(0, len(content), block)), encoding))
    assert decoded.decode() == f"é {text}"


def test_bytes_that_are_invalid_in_the_encoding_skip_their_piece(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(FRENCH.encode("cp1252") * 60 + b"\n\n" + b"bad \x81\x8d byte\n\n" + FRENCH.encode("cp1252") * 60)
    found, tally = read(path, Reading(encoding="cp1252"))
    assert 1 <= tally.skipped_records <= 2 and "not valid cp1252" in tally.skipped[0].reason
    assert found and all("bad" not in piece for piece in found)


@pytest.mark.parametrize("content", [bytes(range(256)) * 40, b"\xff\xd8\xff\xe0" + bytes(900), bytes(9000)])
def test_binary_data_are_not_text_in_any_encoding(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    for encoding in ("", "latin-1", "cp1252", "utf-16-le"):
        found, tally = read(path, Reading(encoding=encoding))
        assert found == [] and "binary" in tally.skipped[0].reason


@pytest.mark.parametrize("name", ["latin", "rot13", "base64", "unicode_escape", "idna", "utf-99", "x" * 200])
def test_an_unknown_encoding_is_refused(tmp_path, name):
    if name == "latin":  # Python's own name for it
        DataConfig(encoding=name)
        return
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"data\.encoding"):
        prepare(DataConfig(sources=(str(tmp_path),), encoding=name))


# Separators of documents


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("between", ["\n{}\n", "{}", "\r\n{}\r\n", "{}\n"])
def test_separators_are_noticed_and_split_when_named(tmp_path, separator, between):
    stories = [f"Story {n}.\n\nIt ends." for n in range(9)]
    path = tmp_path / "stories.txt"
    path.write_bytes(between.format(separator).join(stories).encode())
    found, tally = read(path)
    assert found == [path.read_bytes().decode()] and tally.documents == 1
    (note,) = tally.notes
    assert f"--set 'data.document_separator={separator}'" in note
    found, tally = read(path, Reading(separator=separator))
    assert found == stories and (tally.documents, tally.notes) == (9, {})


def test_a_separator_inside_a_sentence_is_not_one(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("A document ends with `<|endoftext|>`, as `</s>` does.\n")
    assert read(path)[1].notes == {}


@pytest.mark.parametrize("write", [parquet_of, stream_of, lambda table: table_text(texts=table["text"].to_pylist())])
def test_separators_in_records_are_noted(tmp_path, write):
    path = tmp_path / "data.csv"
    joined = [f"story {n} <|endoftext|>" for n in range(9)]
    path.write_bytes(write(table_of(joined)))
    found, tally = read(path)
    assert found == joined and ["its records contain <|endoftext|>" in note for note in tally.notes] == [True]
    path.write_text("\n".join(json.dumps({"text": f"one\n{SEPARATORS[3]}\ntwo {n}"}) for n in range(2)))
    assert [f"its records contain {SEPARATORS[3]}" in note for note in read(path)[1].notes] == [True]
    path.write_bytes(write(table_of(["a text that mentions <|endoftext|> once", "and another"])))
    assert read(path)[1].notes == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "<|", "end of", "\n", "é" * 3, "x" * 400_000])), st.integers(1, 99_999))
def test_splitting_does_not_depend_on_the_blocks(parts, block):
    content = "<|endoftext|>".join(parts).encode()
    blocks = [content[i : i + block] for i in range(0, len(content), block)]
    found = [b"".join(pieces) for pieces in separated(blocks, b"<|endoftext|>")]
    assert found == [part.encode().strip(b"\r\n") for part in parts or [""]]
    cut = [piece for part in parts for piece in cut_pieces([part.encode().strip(b"\r\n")])]
    assert [piece for pieces in separated([content], b"<|endoftext|>") for piece in pieces] == cut


def test_the_note_reaches_the_account(tmp_path, story):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(story(n) for n in range(400)))
    account = prepare(DataConfig(sources=(str(path),), vocab_size=300)).account()
    assert account.notes and account.notes[0].startswith(f"{path}: its documents seem to be separated")
    split = prepare(DataConfig(sources=(str(path),), vocab_size=300, document_separator="<|endoftext|>")).account()
    assert split.notes is None and split.documents == 400


# What seems to be records and is none, and what is taken for something else


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wrapped.json", json.dumps({"version": 1, "data": records()}).encode()),
        ("by_name.json", json.dumps({f"doc{n}": text for n, text in enumerate(TEXTS)}, indent=1).encode()),
        ("numbers_first.json", json.dumps([0, *TEXTS]).encode()),
        ("no_header.csv", b"0," + b"a long text " * 20 + b"\r\n" + table_text()),
        ("line_of_excel.csv", b"sep=;\r\n" + table_text(";")),
        ("comment.tsv", b"# made by hand\n" + table_text("\t")),
    ],
)
def test_text_named_like_records_is_reported(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    found, tally = read(path)
    assert "".join(found).encode() == content
    (note,) = tally.notes
    assert path.suffix in note and "plain text" in note

    assert not read(path, Reading(format="text"))[1].notes  # asked for


@pytest.mark.parametrize("ending", [".txt", ".py", ""])
def test_text_named_like_text_needs_no_note(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"one, two\nthree, four\n")
    assert not read(path)[1].notes


@pytest.mark.parametrize("between", ["", " ", "\r", ","])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("times", [1, 6000])  # within what is looked at, and beyond it
def test_objects_one_after_another_on_a_line(tmp_path, name, between, times):
    path = tmp_path / name
    path.write_text(between.join(json.dumps(record) for record in records() * times), newline="")
    found, tally = read(path)
    assert found == TEXTS * times and not tally.skipped_records


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_table_with_carriage_return_line_ends(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    texts = [text.replace("\n", " ") for text in TEXTS]
    path.write_bytes(table_text(delimiter, texts=texts).replace(b"\r\n", b"\r"))
    found, tally = read(path)
    assert found == texts and tally.documents == len(texts)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "a"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    found, tally = read(path)
    assert not found and "git lfs pull" in tally.skipped[0].reason and tally.skipped_files == 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_named(tmp_path, protocol):
    path = tmp_path / "a.txt"
    path.write_bytes(pickle.dumps(TEXTS, protocol=protocol))
    found, tally = read(path)
    assert not found and "pickle" in tally.skipped[0].reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"messages": [{"role": "user", "content": "hello"}]}\n'),
        ("a.jsonl", b'{"data": {"text": "hello"}}\n'),
        ("a.jsonl", b"{}\n{}\n"),
    ],
)
def test_no_column_is_advised_where_none_holds_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read(path)
    assert "@" not in str(refused.value) and "text_column=" not in str(refused.value)
    assert "write the text of each record into one column" in str(refused.value)


def test_no_column_of_parquet_is_advised_where_none_holds_text(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"messages": pa.array([[{"role": "user"}]]), "id": [1]}), path)
    with pytest.raises(UserError, match="none of them holds text: write") as refused:
        read(path)
    assert "@" not in str(refused.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_a_separator_that_does_not_apply_to_records_is_reported(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": TEXTS}), path)
    else:
        path.write_bytes({"jsonl": b'{"text": "a"}\n', "json": b'[{"text": "a"}]', "csv": b"id,text\n1,a\n"}[ending])
    assert ["separator" in note for note in read(path, Reading(separator="<|endoftext|>"))[1].notes] == [True]
    assert not read(path)[1].notes
