"""--like repeats a run with some settings changed: nothing else differs, and contradicting options are refused."""

import json
import shutil
from pathlib import Path

import pytest

import isoflop
from isoflop import job
from isoflop.cli import run as command
from isoflop.errors import UserError
from isoflop.optim.timetable import Decision
from isoflop.records import read_run
from isoflop.report.page import write_report
from small import TINY, tree_of, write_texts


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished run of 24 steps, and the folder that it lies in with its text."""
    folder = tmp_path_factory.mktemp("like")
    write_texts(folder / "texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_HOME", str(folder / "home"))
        patch.chdir(folder)
        isoflop.pretrain(["texts"], "24steps", "base", assignments=[*TINY, "seed=3"], quiet=True)
    return folder


@pytest.fixture
def there(base, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(base / "home"))
    monkeypatch.chdir(base)
    return base


def learned(run):
    found = read_run(run)
    steps = [(line.step, line.loss, line.grad_norm, line.lr) for line in found.training]
    return steps, [line.heldout_loss for line in found.heldout], found.result.heldout.bits_per_byte


def trained(out, *words):
    return command(["train", "--like", "base", "--out", str(out), *words])


def test_without_changes_it_is_the_same_run_bit_for_bit(there, tmp_path, capsys):
    before = tree_of(Path("base"))
    assert trained(tmp_path / "same") == 0
    assert learned(tmp_path / "same") == learned("base")
    assert tree_of(Path("base")) == before
    assert "like base in every setting" in capsys.readouterr().out
    assert read_run(tmp_path / "same").plan.like == str(Path("base").resolve())


def test_one_swap_is_one_difference(there, tmp_path, capsys):
    assert trained(tmp_path / "swapped", "--set", "model.wiring=post") == 0
    run, base = read_run(tmp_path / "swapped"), read_run("base")
    assert run.config["model"]["wiring"] != base.config["model"]["wiring"]
    assert {**run.config, "model": {**run.config["model"], "wiring": base.config["model"]["wiring"]}} == base.config
    assert run.result.tokens == base.result.tokens and run.data.fingerprint == base.data.fingerprint
    assert "except for model.wiring" in capsys.readouterr().out

    page = write_report([Path("base"), tmp_path / "swapped"], tmp_path / "both.html").read_text()
    assert "Unequal conditions" not in page  # nothing but the swap
    assert "Compared with the baseline" in page and "paired stretches of the held-out text" in page
    assert "<code>model.wiring</code>" in page and "The field in which the runs differ" in page
    assert "<h2>Samples</h2>" in page


def test_the_schedule_of_a_run_whose_end_moved_is_replayed_also_after_a_resume(there, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree("base", moved)
    decisions = [Decision(6, 30, reason="slow"), Decision(12, 26)]
    (moved / "decisions.jsonl").write_text("".join(json.dumps(one.line(0.0).to_dict()) + "\n" for one in decisions))
    job.train_like(moved, tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.result.step == 26 and run.plan.steps == 26
    assert [(line.at_step, line.steps, line.replayed) for line in run.decisions] == [(6, 30, True), (12, 26, True)]
    assert "as in moved: slow" in run.decisions[0].reason
    assert [line.lr for line in run.training][:6] == [line.lr for line in read_run("base").training][:6]
    assert run.training[-2].lr > 0

    # it can be extended as any run
    isoflop.resume(tmp_path / "run", "+6steps", quiet=True)
    assert read_run(tmp_path / "run").result.step == 32

    with pytest.raises(UserError, match=r"--set steps=40 does not go with --like .*whose end moved.* steps=40"):
        job.train_like(moved, tmp_path / "other", assignments=["steps=40"])
    assert not (tmp_path / "other").exists()


def test_its_text_may_have_moved_and_may_not_be_another(there, tmp_path, monkeypatch):
    shutil.copytree("texts", tmp_path / "moved")
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    shutil.copytree("base", tmp_path / "base")
    account = json.loads((tmp_path / "base" / "data.json").read_text())
    (tmp_path / "base" / "data.json").write_text(json.dumps({**account, "folder": str(tmp_path / "gone")}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"isoflop train --like base SOURCE"):
        job.train_like("base", "run")
    write_texts(tmp_path / "other", files=20)
    with pytest.raises(UserError, match="other is not the text that base was trained on"):
        job.train_like("base", "run", sources=["other"])
    with pytest.raises(UserError, match="none was named for that; leave --heldout out"):
        job.train_like("base", "run", heldout=["other"])
    assert not Path("run").exists()
    assert trained("run", "moved") == 0
    assert learned("run") == learned("base")
    assert read_run("run").config["data"]["sources"] == [f"texts={tmp_path / 'moved'}"]


def test_files_of_a_killed_start_do_not_affect_another_run(there, tmp_path):
    line = Decision(6, 30).line(0.0).updated(replayed=True).to_dict()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "decisions.jsonl").write_text(json.dumps(line) + "\n")
    isoflop.pretrain(["texts"], "8steps", tmp_path / "run", assignments=TINY, quiet=True)
    assert read_run(tmp_path / "run").result.step == 8 and not read_run(tmp_path / "run").decisions


@pytest.mark.parametrize(
    "words",
    [
        ["--budget", "3m"],
        ["--recipe", "x.py:f"],
        ["--config", "base/config.json"],
        ["--init", "base"],
        ["--strict"],
        ["--task", "seq2seq"],
    ],
)
def test_contradicting_arguments_are_refused_in_one_line(there, tmp_path, capsys, words):
    assert trained(tmp_path / "run", *words) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"isoflop: {words[0]} does not go with --like") and message.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--like", ""], "--like is empty"),
        (["--like", "nothing"], "holds no run"),
        (["--like", "base", "--set", "seconds=5"], "--set seconds does not go with --like base"),
        (["--like", "base", "--set", "model.wirin=none"], "model.wirin"),
        (["--like", "base", "--resume", "base"], "--like does not go with --resume"),
    ],
)
def test_invalid_arguments_give_one_line(there, tmp_path, capsys, words, expected):
    out = [] if "--resume" in words else ["--out", str(tmp_path / "run")]
    assert command(["train", *words, *out]) == 2
    message = capsys.readouterr().err
    assert expected in message and "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_the_configuration(there, tmp_path, capsys):
    assert trained(tmp_path / "run", "--set", "model.norm=layer", "--dry-run") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["norm"] == "layer" and shown["seed"] == 3 and shown["seconds"] == 0
    assert not (tmp_path / "run").exists()
