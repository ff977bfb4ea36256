"""A file that cannot be read, has an unusual name or is not the user's text never stops a preparation."""

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.cli import run as cli
from isoflop.data.config import DataConfig
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepare import documents, prepare
from isoflop.data.tally import Tally
from isoflop.errors import UserError
from small import TINY

SMALL = [word for text in TINY for word in ("--set", text)]


def config_of(*sources, **fields):
    return DataConfig(**{"sources": tuple(map(str, sources)), "vocab_size": 300, "workers": 1, **fields})


def walked(source) -> tuple[list[str], dict[str, int]]:
    """Names of the files that are found, and what was counted."""
    tally = Tally()
    found = find_files(parse_sources([str(source)])[0], tally)
    counted: dict[str, int] = {}
    for kind in tally.unused():
        counted[kind.what] = counted.get(kind.what, 0) + kind.count
    return [file.path.name for file in found], counted


# Names and rights


@pytest.fixture
def corpus(folder_of):
    return folder_of("text", 8)


def test_a_name_that_is_not_utf8_is_read_and_can_be_shown(corpus, capsys, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(corpus) + b"/caf\xe9\x1b.txt"))
    odd.write_text("a text under an odd name\n")
    bad = Path(os.fsdecode(os.fsencode(corpus) + b"/\xff.txt"))
    bad.write_bytes(b"\xff\xfe\xfd" * 50)
    account = prepare(config_of(corpus)).account()
    assert "a text under an odd name\n" in list(documents(config_of(corpus)))
    (kind,) = account.unused
    assert kind.what == "file" and kind.first.endswith("/\\xff.txt")
    json.dumps(account.to_dict()).encode()
    os.rename(odd, tmp_path / os.fsdecode(b"\xe9.txt"))  # noqa: PTH104
    named = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.txt")
    many = Path(named)
    many.write_text("\n\n".join(f"paragraph {i} of a text with an odd name" for i in range(4000)))
    assert cli(["prepare", named, "--out", str(tmp_path / "p"), "--set", "data.vocab_size=300"]) == 0
    capsys.readouterr().out.encode()
    assert cli(["train", named, "--budget", "2steps", "--out", str(tmp_path / "r"), *SMALL]) == 0
    capsys.readouterr().out.encode()
    assert cli(["eval", str(tmp_path / "r"), named]) == 0


@pytest.fixture
def for_anybody():
    """A folder that every user may enter: those above a test's own belong to whoever runs the tests."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)  # noqa: PTH101
        yield Path(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_without_permission_it_is_skipped_and_counted(for_anybody, story, what):
    """Root may read everything, so that the preparation runs as another user."""
    corpus, home = for_anybody / "text", for_anybody / "home"
    for folder in (corpus, corpus / "sub", home):
        folder.mkdir()
        os.chmod(folder, 0o777)  # noqa: PTH101
    for i in range(9):
        (corpus / f"{i}.txt").write_text(story(i))
    for path in (corpus / "locked.txt", corpus / "sub/inner.txt"):
        path.write_text("nobody may read this\n")
    os.chmod(corpus / ("locked.txt" if what == "file" else "sub"), 0)  # noqa: PTH101
    script = (
        "import os, sys\nfrom isoflop.data.config import DataConfig\nfrom isoflop.data.prepare import prepare\n"
        "from importlib.metadata import version\nversion('tokenizers')  # loads what root alone may be able to read\n"
        "if os.geteuid() == 0:\n    os.seteuid(65534)\n"
        "config = lambda strict: DataConfig(sources=(sys.argv[1],), vocab_size=300, workers=1, strict=strict)\n"
        "for line in prepare(config(False)).account().not_used().lines:\n    print(line)\n"
        "try:\n    prepare(config(True))\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(corpus)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "ISOFLOP_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert len(done.stdout.splitlines()) == 2, done.stderr
    summary, refused = done.stdout.splitlines()
    assert f"1 {what}" in summary and "Permission denied" in summary and str(corpus) in summary
    assert refused.startswith("UserError") and "Permission denied" in refused


def test_damaged_files_do_not_affect_others(corpus):
    (corpus / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(9000))[:-500])
    (corpus / "no.txt.gz").write_bytes(b"no gzip at all \x00\xff")
    (corpus / "other.jsonl").write_text('{"body": "no text column"}\n' * 3)
    (corpus / "bad.parquet").write_bytes(b"PAR1" + bytes(80))
    account = prepare(config_of(corpus)).account()
    assert account.documents == 8
    reasons = " ".join(kind.reason for kind in account.unused)
    assert "truncated" in reasons and "is not a gzip file" in reasons and "no text column" in reasons
    assert account.skipped_files >= 3
    with pytest.raises(UserError):
        prepare(config_of(corpus, strict=True))
    assert len(list(documents(config_of(corpus)))) == 8


def test_text_before_the_damage_of_a_file_is_kept(tmp_path, story):
    records = "".join(json.dumps({"text": story(i, 30)}) + "\n" for i in range(400)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(records)[:-20_000])
    account = prepare(config_of(tmp_path / "a.jsonl.gz")).account()
    assert 50 < account.documents < 400
    (kind,) = [one for one in account.unused if one.what == "file end"]
    assert "truncated" in kind.reason and 0 < kind.bytes <= 100_000


def test_an_empty_source_among_several_is_reported(corpus, tmp_path):
    """A shell's pattern makes a source of every file."""
    (corpus / "empty.txt").write_text("")
    (corpus / "blank.txt").write_text(" \n")
    (corpus / "picture.png").write_bytes(b"\x89PNG" + bytes(90))
    (corpus / "nowhere.txt").symlink_to("/no/such/file")
    paths = sorted(corpus.iterdir())
    account = prepare(config_of(*paths)).account()
    assert account.documents >= 8
    counted = Counter({(kind.what, bool(kind.meant)): kind.count for kind in account.unused})
    assert counted == {("file", False): 1, ("link", False): 1, ("source", True): 2}
    with pytest.raises(UserError):
        prepare(config_of(*paths, strict=True))
    with pytest.raises(UserError, match="is empty"):
        prepare(config_of(corpus / "empty.txt"))
    with pytest.raises(UserError, match=r"nowhere.txt\) has no file that can be read.*1 link.*leads nowhere"):
        prepare(config_of(corpus / "nowhere.txt"))
    (corpus / "circle.txt").symlink_to("circle.txt")
    for name in ("circle.txt", "c*.txt"):
        with pytest.raises(UserError, match=r"1 link.*it leads back to itself"):
            prepare(config_of(corpus / name))


def test_pairs_come_from_the_files_that_have_some(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"word{i}\tW {i}\n" for i in range(60)))
    (tmp_path / "readme").write_text("nothing\n")
    (tmp_path / "x.tsv.gz").write_bytes(b"no gzip \x00\xff")
    (tmp_path / "gone.tsv").symlink_to(tmp_path / "nothing")
    account = prepare_pairs(config_of(tmp_path)).account()
    assert account.documents == 60 and account.skipped_files == 3
    with pytest.raises(UserError, match="holds no pairs"):
        prepare_pairs(config_of(tmp_path / "readme"))


# What lies next to text


def run_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "events.jsonl"):
        (path / name).write_text('{"text": "no text of the user\'s"}\n')
    return path


def test_files_that_are_not_the_users_text_are_left_out_and_reported(corpus, tmp_path):
    run_folder(corpus / "runs/a-1"), run_folder(corpus / "deep/er/run")
    for folder, names in {
        "prepared": ("manifest.json", "tokenizer.json", "heldout.0000.bin", "train.0.0000.bin"),
        "model": ("config.json", "model.safetensors", "tokenizer.json"),
        "venv": ("pyvenv.cfg", "lib/site.py"),
        "repo.git": ("HEAD", "objects/x", "refs/y"),
        "node_modules": ("a/index.js",),
        ".git": ("config",),
        "hf": ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"),
    }.items():
        for name in names:
            (corpus / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (corpus / folder / name).write_text("not text")
    (corpus / "state.json").write_text("the name alone says nothing")
    names, counted = walked(corpus)
    assert names == [*(f"{i:03d}.txt" for i in range(8)), "state.json", "data-00000-of-00001.arrow"]
    assert counted == {
        "run folder": 2,
        "prepared-data folder": 1,
        "model folder": 1,
        "virtual environment": 1,
        "Git repository": 1,
        "package folder": 1,
        "hidden folder": 1,
        "metadata file": 2,
    }
    assert sorted(walked(f"{corpus}/*")[0]) == sorted(walked(corpus)[0])
    (corpus / "prepared/manifest.json").unlink()
    assert "tokenizer.json" in walked(corpus)[0]
    with pytest.raises(UserError, match=r"holds no files.*left out: 1 run folder"):
        find_files(parse_sources([str(corpus / "runs")])[0])


def test_isoflops_own_folder_is_left_out(corpus, monkeypatch):
    home = corpus / "h"
    (home / "data").mkdir(parents=True)
    (home / "ledger.jsonl").write_text("{}\n")
    monkeypatch.setenv("ISOFLOP_HOME", str(home))
    names, counted = walked(corpus)
    assert len(names) == 8 and counted == {"isoflop folder": 1}


def test_a_second_run_does_not_read_the_first(tmp_path, monkeypatch, capsys, story):
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        Path(f"{i}.txt").write_text(story(i))
    for _ in range(2):
        assert cli(["train", ".", "--budget", "2steps", *SMALL]) == 0
    assert "left out: 1 run folder" in capsys.readouterr().out
    one, two = (json.loads(path.read_text()) for path in sorted(Path("runs").glob("*/data.json")))
    assert one["fingerprint"] == two["fingerprint"]


def test_older_runs_keep_their_rules_for_folders(corpus):
    run_folder(corpus / "run")
    (corpus / "linked").symlink_to(corpus.parent)
    source = parse_sources([str(corpus)])[0]
    assert len(find_files(source, older=True)) == 11 and len(find_files(source)) == 8
    (corpus / "linked").unlink()
    source = parse_sources([f"{corpus}/*"])[0]
    assert len(find_files(source, older=True)) == 11 and len(find_files(source)) == 8


# Links


def test_linked_folders_are_read_once(tmp_path):
    for name in ("t/a", "t/b/c", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("t/one.txt", "t/a/two.txt", "t/b/c/three.txt", "elsewhere/four.txt", "elsewhere/deep/five.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "t/A-link").symlink_to(tmp_path / "t/b")  # sorts before what it leads to
    (tmp_path / "t/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t/b/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t/up").symlink_to(tmp_path)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "t")
    (tmp_path / "t/nowhere").symlink_to(tmp_path / "nothing")
    (tmp_path / "t/self").symlink_to("self")
    names, counted = walked(tmp_path / "t")
    assert Counter(names) == Counter(["one.txt", "two.txt", "three.txt", "four.txt", "five.txt"])
    assert counted["link"] >= 4


entries = st.lists(
    st.tuples(
        st.sampled_from(["file", "folder", "link", "dangling", "fifo", "hidden", "hard link"]),
        st.integers(0, 30),  # the folder that it is in
        st.integers(0, 30),  # what it leads to
        st.sampled_from([b"a", b"\xff\xe9", "ü".encode(), b"b\n", b"-", b"x y"]),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(entries)
def test_any_tree_is_walked_to_its_end_and_every_file_is_found_once(made):
    with tempfile.TemporaryDirectory() as top:
        root = os.fsencode(top)
        folders, regular = [root], []
        for number, (kind, inside, target, name) in enumerate(made):
            path = folders[inside % len(folders)] + b"/" + (b"." if kind == "hidden" else b"") + name + b"%d" % number
            if kind == "folder":
                os.mkdir(path)  # noqa: PTH102
                folders.append(path)
            elif kind == "link":
                os.symlink(folders[target % len(folders)], path)  # noqa: PTH211
            elif kind == "dangling":
                os.symlink(b"nothing", path)  # noqa: PTH211
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "hard link" and regular:
                os.link(regular[target % len(regular)], path)
            else:
                with open(path, "wb") as file:  # noqa: PTH123
                    file.write(b"%d" % number)
                if kind != "hidden":
                    regular.append(path)
        tally = Tally()
        source = parse_sources([top])[0]
        plain = sum(kind in ("file", "hard link") for kind, *_ in made)
        if not plain:
            with pytest.raises(UserError, match="holds no files"):
                find_files(source)
            return
        found = find_files(source, tally)
        assert len(found) == plain == len({os.fsencode(file.path) for file in found})
        assert all(file.shown.isprintable() or "\n" in file.shown for file in found)
        lost = sum(one.count for one in tally.unused() if not one.meant)
        meant = sum(one.count for one in tally.unused() if one.meant)
        assert lost == sum(kind == "dangling" for kind, *_ in made)
        assert meant <= sum(kind in ("link", "fifo", "hidden") for kind, *_ in made)
        assert [file.shown for file in find_files(source)] == [file.shown for file in found]


@pytest.mark.parametrize("name", ["a\x1b[31mred.txt", "two\nlines.txt", "tab\t.txt", "back\u202ewards.txt"])
def test_a_file_name_cannot_control_the_terminal(corpus, capsys, tmp_path, name):
    (corpus / name).write_bytes(b"\xff\xfe\xfd" * 99)
    assert cli(["prepare", str(corpus), "--out", str(tmp_path / "out"), "--set", "data.vocab_size=300"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not used")]
    assert len(lines) == 1 and ".txt)" in lines[0] and lines[0].isprintable()


def test_files_below_an_unreadable_folder_are_not_called_missing(tmp_path, monkeypatch):
    def closed(path, **_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.lstat", closed)
    with pytest.raises(UserError, match="cannot be reached"):
        find_files(parse_sources([str(tmp_path / "closed" / "a.txt")])[0])
