"""Unused text and notes about it are reported in the same words everywhere."""

import html
import json

import pytest

from isoflop.cli import run as command
from isoflop.records import read_run
from small import TINY, write_texts

SMALL = [word for text in TINY for word in ("--set", text)]


@pytest.fixture
def mixed(tmp_path):
    """A folder with a little of everything that may lie in one."""
    folder = write_texts(tmp_path / "texts", files=30)
    records = [json.dumps({"text": f"record {number} {'words ' * 30}"}) for number in range(40)]
    (folder / "mixed.jsonl").write_text("\n".join([*records, '{"tex": 1}', '{"text": 2}', "{broken"]), encoding="utf-8")
    (folder / "latin.txt").write_bytes("Ça m'a plu : déjà l'été, où l'on dîne à l'ombre.\n".encode("latin-1") * 40)
    (folder / "wide.txt").write_text("a text of two bytes a letter\n" * 90, encoding="utf-16")
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(f"story {n} " * 30 for n in range(30)))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    (folder / "nowhere").symlink_to(folder / "gone")
    (folder / "dataset_info.json").write_text('{"description": "a data set"}')
    (folder / ".hidden").write_text("a hidden file")
    (folder / "an old run").mkdir()
    (folder / "an old run" / "config.json").write_text("{}")
    (folder / "an old run" / "metrics.jsonl").write_text('{"loss": 1}\n')
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    return folder


def test_the_words_are_the_same_everywhere(mixed, tmp_path, capsys):
    assert command(["train", str(mixed), "--budget", "20steps", "--out", str(tmp_path / "run"), *SMALL]) == 0
    shown = {"train": capsys.readouterr().out}
    assert command(["prepare", str(mixed), "--out", str(tmp_path / "p"), "--set", "data.vocab_size=320"]) == 0
    shown["prepare"] = capsys.readouterr().out
    assert command(["eval", str(tmp_path / "run"), str(mixed)]) == 0
    shown["eval"] = capsys.readouterr().out
    report = read_run(tmp_path / "run").data.not_used()  # data.json
    shown["report"] = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))

    for line in report.all():
        for place, text in shown.items():
            assert line in text, place
    text = "\n".join(report.all())
    for part in ("latin-1", "record", "picture", "link", "metadata file", "hidden file", "run folder", "hidden folder"):
        assert part in text, part
    assert report.warning and len(report.notes) == 2
    assert "read as utf-16" in text and "<|endoftext|>" in text


def test_reused_data_are_reported_again(mixed, tmp_path, capsys):
    """For text that is already prepared, and for a run whose data are in their own folder."""
    asked = ["--budget", "20steps", *SMALL]
    assert command(["train", str(mixed), "--out", str(tmp_path / "a"), "--dry-run", *asked]) == 0
    first = capsys.readouterr().out
    assert command(["train", str(mixed), "--out", str(tmp_path / "b"), "--dry-run", *asked]) == 0
    again = capsys.readouterr().out
    lines = [line for line in first.splitlines() if line.startswith(("not used", "left out", "note: ", "warning"))]
    assert len(lines) > 8 and all(line in again for line in lines)
