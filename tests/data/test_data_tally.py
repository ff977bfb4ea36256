"""Unused text is counted by kind and reported in the same words everywhere."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.cli import run as cli
from isoflop.data.config import DataConfig
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepare import prepare
from isoflop.data.tally import KINDS_KEPT, SKIPPED_KEPT, Tally, because, total_of
from isoflop.records import DataAccount, Unused, not_used
from isoflop.records.account import format_bytes
from small import TINY

SMALL = [word for text in TINY for word in ("--set", text)]


def mixed_records(good: int, bad: int) -> str:
    """JSON lines of which some have no text: a number, nothing, no such column, no JSON."""
    lines = [json.dumps({"text": f"record {i} tells of the lamp near the river {i * 7919}"}) for i in range(good)]
    others = ['{"text": 5}', '{"text": null}', '{"body": "x"}', "no JSON {"]
    lines += [others[i % 4] for i in range(bad)]
    return "\n".join(lines) + "\n"


skips = st.lists(
    st.tuples(
        st.sampled_from(["a.txt", "b.jsonl", "c/d.parquet"]),
        st.sampled_from(["binary", "not valid UTF-8 at byte 3", "not valid UTF-8 at byte 99", "a line is not JSON"]),
        st.integers(0, 10**6),
        st.booleans(),
    ),
    max_size=60,
)


@given(skips, skips, st.integers(0, 10**7))
def test_the_tally_counts_everything(first, second, used):
    one, other = Tally(used_bytes=used), Tally()
    for tally, some in ((one, first), (other, second)):
        for skip in some:
            tally.skip(*skip)
    total = total_of([one, other])
    unused = total.unused()
    assert sum(kind.count for kind in unused) == len(first) + len(second)
    assert sum(kind.bytes for kind in unused) == total.skipped_bytes == sum(skip[2] for skip in first + second)
    assert total.skipped_files == sum(skip[3] for skip in first + second)
    assert len(total.skipped) == min(SKIPPED_KEPT, len(first + second))
    assert len({(kind.what, kind.reason.partition(" at byte")[0]) for kind in unused}) == len(unused) <= 6

    unused_files = not_used(unused, total.found_bytes)
    assert len(unused_files.lines) == len(unused) and bool(because(total)) == bool(unused)
    assert bool(unused_files.warning) == (total.skipped_bytes > 0.01 * total.found_bytes)
    for kind, line in zip(unused, unused_files.lines, strict=True):
        assert f" {kind.count:,} {kind.what}" in line and format_bytes(kind.bytes) in line and "% of the bytes" in line
        assert kind.first in line and kind.reason in line and "\n" not in line


def test_a_thousand_reasons_take_bounded_memory():
    tally = Tally()
    for i in range(1000):
        tally.skip(f"{i}.txt", f"reason {i}", 1, True)
        tally.leave_out("hidden file", f".{i}", 1)
    assert len(tally.kinds) <= KINDS_KEPT + 2 and sum(kind.count for kind in tally.unused()) == 2000
    assert "more kinds" in not_used(tally.unused(), tally.found_bytes).lines[-1]


def test_files_left_out_on_purpose_are_reported_without_a_warning():
    tally = Tally(used_bytes=10, strict=True)
    tally.leave_out("run folder", "runs/a-1", 5_000_000)
    tally.leave_out("run folder", "runs/a-2", 5_000_000)
    unused_files = not_used(tally.unused(), tally.found_bytes)
    assert unused_files.all() == ("left out: 2 run folders, 10.0 MB (the first: runs/a-1)",)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (4100, "4.1 kB"), (3e9, "3.0 GB")]
)
def test_sizes_in_words(size, text):
    assert format_bytes(size) == text


def test_an_older_account_is_described_too():
    account = DataAccount.read(
        {
            "skipped": [{"path": "a.png", "reason": "binary, not text", "bytes": 24}],
            "skipped_files": 7,
            "skipped_bytes": 90_000,
            "train": {"bytes": 900_000},
        }
    )
    lines = account.not_used().all()
    assert lines[0] == "warning: 9.1% of the bytes found were not used (90.0 kB)"
    assert "7 files, 90.0 kB, 9.1% of the bytes: binary, not text (the first: a.png)" in lines[1]
    assert DataAccount.read({}).not_used().all() == () == DataAccount(unused=()).not_used().all()


def test_the_account_is_read_back_as_it_was_written(tmp_path):
    (tmp_path / "a.jsonl").write_text(mixed_records(60, 4))
    account = prepare(DataConfig(sources=(str(tmp_path / "a.jsonl"),), vocab_size=300, workers=1)).account()
    assert (
        sum(kind.count for kind in account.unused) == 4 and account.found_bytes == (tmp_path / "a.jsonl").stat().st_size
    )
    assert DataAccount.read(json.loads(json.dumps(account.to_dict()))) == account
    assert all(isinstance(kind, Unused) for kind in account.unused)


def test_the_same_words_on_every_screen_and_in_the_report(tmp_path, capsys, monkeypatch):
    """train, prepare, eval, data.json and the report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(mixed_records(70, 30))
    screens = {}
    commands = {
        "prepare": ["prepare", "a.jsonl", "--out", "p", "--set", "data.vocab_size=300"],
        "train": ["train", "a.jsonl", "--budget", "3steps", "--out", "r", *SMALL],
        "eval": ["eval", "r", "a.jsonl"],
    }
    for name, command in commands.items():
        assert cli(command) == 0
        screens[name] = capsys.readouterr().out
    lines = DataAccount.read(json.loads((tmp_path / "r/data.json").read_text())).not_used().all()
    assert len(lines) == 5 and lines[0].startswith("warning: ") and "8 records" in lines[1]
    page = re.sub("&#x27;", "'", (tmp_path / "r/report.html").read_text())
    for line in lines:
        assert line in page
        for screen in screens.values():
            assert line in screen.splitlines()
    assert cli(["eval", "r", "a.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(kind["count"] for kind in found["unused"]) == 30
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    assert cli(["eval", "r", "latin.txt"]) == 2
    assert "not used: 1 file, 500 bytes" in capsys.readouterr().err


def test_unused_pairs_are_reported(tmp_path):
    lines = [f"word{i}\tW O R D {i}" for i in range(100)] + ["no tab", "long\t" + "x y " * 400, "empty\t\t"]
    (tmp_path / "p.tsv").write_text("\n".join(lines) + "\n")
    account = prepare_pairs(DataConfig(sources=(str(tmp_path / "p.tsv"),), vocab_size=270)).account()
    kinds = {kind.reason: kind.count for kind in account.unused}
    assert kinds == {
        "a side has more than 512 tokens": 1,
        "there is no tab in the line": 2,
    }
    assert account.not_used().warning and account.too_long == 1
