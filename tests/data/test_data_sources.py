"""Parsing sources, and listing their files."""

import io
import os
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from isoflop.data import corpus
from isoflop.data.config import DataConfig
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.prepare import documents
from isoflop.errors import UserError


def test_names_and_weights_are_read_and_weights_add_up_to_one(tmp_path):
    for name in ("books.txt", "web.txt"):
        (tmp_path / name).write_text("x")
    books, web = parse_sources([f"novels={tmp_path}/books.txt:3", f"{tmp_path}/web.txt:1"])
    assert (books.name, books.pattern, books.weight) == ("novels", f"{tmp_path}/books.txt", 0.75)
    assert (web.name, web.weight) == ("web", 0.25)


@pytest.mark.parametrize("name", ["a=b.txt", "12:30", "x=y:0.5", "a:b=c:2"])
def test_a_path_that_exists_is_taken_literally(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("text")
    (source,) = parse_sources([name])
    assert (source.pattern, source.weight) == (name, None)
    (weighted,) = parse_sources([f"part={name}:0.7"])
    assert (weighted.name, weighted.pattern, weighted.weight) == ("part", name, 1.0)


@pytest.mark.parametrize(
    ("text", "name", "path", "column", "weight"),
    [
        ("{}/b.jsonl@body", "b", "{}/b.jsonl", "body", None),
        ("two={}/b.jsonl@body:3", "two", "{}/b.jsonl", "body", 1.0),
        ("{}/b.jsonl@the text:2", "b", "{}/b.jsonl", "the text", 1.0),
        ("{}/b.jsonl@a/b.c", "b", "{}/b.jsonl", "a/b.c", None),
        ("{}/b*@body", "text", "{}/b*", "body", None),
        ("{}/c@d.txt", "c-d", "{}/c@d.txt", None, None),
        ("{}/c@d.txt@body", "c-d", "{}/c@d.txt", "body", None),
        ("{}/c:3@x.txt@body:0.5", "c-3-x", "{}/c:3@x.txt", "body", 1.0),
        ("{}/gone.jsonl@body:0.5", "gone", "{}/gone.jsonl", "body", 1.0),
        ("{}/me@home/gone.txt", "gone", "{}/me@home/gone.txt", None, None),
        ("{}/gone@v1.txt", "gone-v1", "{}/gone@v1.txt", None, None),
        ("-@body", "stdin", "-", "body", None),
    ],
)
def test_a_source_can_name_its_column(tmp_path, text, name, path, column, weight):
    folder = tmp_path / "text"
    folder.mkdir()
    for existing in ("b.jsonl", "c@d.txt", "c:3@x.txt"):
        (folder / existing).write_text("x")
    (source,) = parse_sources([text.format(folder)])
    assert (source.pattern, source.column, source.weight) == (path.format(folder), column, weight)
    assert source.name.startswith(name.partition("-")[0])


def test_two_sources_with_different_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "body": "two"}\n')
    (tmp_path / "b.jsonl").write_text('{"body": "three"}\n')
    a, b = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert list(documents(DataConfig(sources=(a, f"{b}@body")))) == ["one", "three"]
    assert list(documents(DataConfig(sources=(f"{a}@text", b), text_column="body"))) == ["one", "three"]


def test_unnamed_sources_get_distinct_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.jsonl.xz").write_text("x")
    names = [s.name for s in parse_sources([f"{tmp_path}/a/text.jsonl.xz", f"{tmp_path}/b/text.jsonl.xz", "-"])]
    assert names == ["text", "text-2", "stdin"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["a=x:0"], "weight 0"),
        (["a=x:-1"], "weight -1"),
        (["a=x:nan"], "weight nan"),
        (["a=x:inf"], "weight inf"),
        (["a=x:1", "b=y"], "source b has no weight"),
        (["a=x", "a=y"], "second time"),
        ([""], "a source is empty"),
    ],
)
def test_invalid_sources_are_refused(sources, message):
    with pytest.raises(UserError, match=message):
        parse_sources(sources)


def test_a_folder_is_read_to_its_depths_without_hidden_files(tmp_path):
    (tmp_path / "t/deep/er").mkdir(parents=True)
    (tmp_path / "t/.git").mkdir()
    for name in ("t/deep/er/one.md", "t/two", "t/.hidden", "t/.git/config"):
        (tmp_path / name).write_text("text")
    (tmp_path / "t/loop").symlink_to(tmp_path / "t")
    found = find_files(parse_sources([str(tmp_path / "t")])[0])
    assert sorted(file.path.name for file in found) == ["one.md", "two"]


def test_a_glob_finds_files_and_folders(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("a.txt", "b/c.rst", "d.md"):
        (tmp_path / name).write_text("text")
    found = find_files(parse_sources([f"{tmp_path}/[ab]*"])[0])
    assert [file.path.name for file in found] == ["a.txt", "c.rst"]


@pytest.mark.parametrize("path", ["nowhere.txt", "*.nothing", "empty-folder", "/dev/null"])
def test_a_missing_source_is_named(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("empty-folder").mkdir()
    with pytest.raises(UserError) as refused:
        find_files(parse_sources([path])[0])
    assert path in str(refused.value) and "\n" not in str(refused.value)


def test_no_source_means_this_pythons_own_library_without_tests():
    (source,) = parse_sources([])
    found = find_files(source)
    top = Path(sysconfig.get_paths()["stdlib"])
    inside = {file.path.relative_to(top) for file in found}
    assert source.name == "stdlib" and Path("argparse.py") in inside
    assert not {"site-packages", "test", "tests", "__pycache__"} & {part for path in inside for part in path.parts}
    assert 5e6 < sum(file.size for file in found) < 40e6


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


@pytest.fixture
def no_spool(monkeypatch):
    monkeypatch.setattr(corpus, "_spooled", {})


def test_standard_input_is_read_once_and_found_again(monkeypatch, no_spool, own_home):
    monkeypatch.setattr(sys, "stdin", Stdin(b"from a pipe\n"))
    config = DataConfig(sources=("-",))
    assert list(documents(config)) == ["from a pipe\n"]
    assert list(documents(config)) == ["from a pipe\n"]
    (spooled,) = (own_home / "spool").iterdir()
    assert spooled.read_bytes() == b"from a pipe\n" and corpus.is_locked(spooled)


def test_standard_input_may_be_jsonl(monkeypatch, no_spool):
    monkeypatch.setattr(sys, "stdin", Stdin(b'{"id": 1, "text": "one"}\n{"text": "two"}\n'))
    assert list(documents(DataConfig(sources=("-",)))) == ["one", "two"]


def test_a_spooled_file_of_an_ended_process_is_removed(monkeypatch, no_spool, own_home):
    left = own_home / "spool" / "1-dead"
    left.parent.mkdir(parents=True)
    left.write_text("old")
    os.utime(left, (0, 0))
    monkeypatch.setattr(sys, "stdin", Stdin(b"new"))
    find_files(parse_sources(["-"])[0])
    assert not left.exists()


def test_a_named_pipe_is_read_once_like_standard_input(tmp_path, no_spool):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"through a pipe",))
    writer.start()
    config = DataConfig(sources=(str(pipe),))
    assert list(documents(config)) == ["through a pipe"] == list(documents(config))
    writer.join()
