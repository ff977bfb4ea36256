"""A run whose text was moved takes the new place; a run with --init reports the loss before training."""

import shutil
from pathlib import Path

import pytest

import isoflop
from isoflop.cli import run as command
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.job.reopen import relocated
from isoflop.records import read_run
from small import TINY, copy_into, train_in, write_texts

# what a run from other weights can be told, whose model is given: without them the machine is timed
QUICK = ["batch.sequences=8", "runtime.dtype=float32", "runtime.threads=1", "sample.tokens=20", "evaluate_tokens=2048"]


def forget(monkeypatch, tmp_path):
    """Nothing that was prepared is left."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / f"home{len(list(tmp_path.iterdir()))}"))
    for manifest in tmp_path.glob("home*/**/manifest.json"):
        manifest.unlink()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_in(folder)
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A finished run, whose prepared data and text are gone from where they were; the text is now in `moved`."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    copy_into(tmp_path, trained, "run")
    (tmp_path / "texts").rename(tmp_path / "moved")
    forget(monkeypatch, tmp_path)
    return Path("run")


def test_a_run_takes_the_new_place_of_its_text_and_keeps_it(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"does not exist.*isoflop train --resume run SOURCE"):
        isoflop.resume(run, "+5steps", quiet=True)
    with pytest.raises(UserError, match=r"does not exist.*isoflop eval run --moved SOURCE"):
        isoflop.evaluate(run)
    before = read_run(run).result.heldout.bits_per_byte
    assert isoflop.evaluate(run, moved=["moved"]).bits_per_byte == before
    isoflop.resume(run, "+5steps", sources=["moved"], quiet=True)
    assert read_run(run).result.step == 25 and read_run(run).data.moved_to == (f"texts={tmp_path / 'moved'}",)

    # from now on it is known, from wherever
    forget(monkeypatch, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert isoflop.evaluate(tmp_path / run).bits_per_byte == read_run(tmp_path / run).result.heldout.bits_per_byte
    isoflop.resume(tmp_path / run, "+5steps", quiet=True)


def test_another_text_is_refused_with_the_command_that_trains_on_it(run, tmp_path):
    write_texts(tmp_path / "other", files=20)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"other is not the text that run was trained on .*--init run") as refused:
        isoflop.resume(run, "+5steps", sources=["other"], quiet=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    way_out = str(refused.value).partition("isoflop train ")[2].split()
    assert command(["train", *way_out, "--budget", "5steps", "--out", "new", "--set", *QUICK]) == 0


def test_the_command_line_takes_the_new_place(run, capsys):
    assert command(["eval", "run"]) == 2 and "--moved SOURCE" in capsys.readouterr().err
    assert command(["eval", "run", "--moved", "moved"]) == 0
    assert command(["eval", "run", "moved"]) == 0
    assert command(["eval", "run", "moved", "--moved", "moved"]) == 2
    assert command(["train", "--resume", "run", "moved", "--budget", "+5steps"]) == 0
    assert "returns to step" in capsys.readouterr().out
    assert command(["eval", "run"]) == 0


def test_named_held_out_text_may_have_moved_too(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("held").mkdir()
    Path("other.txt").write_text("what is in none of these texts " * 99)
    for number in range(50, 60):
        (corpus / f"{number}.txt").rename(tmp_path / "held" / f"{number}.txt")
    isoflop.pretrain(["texts"], "20steps", "run", heldout=["held"], assignments=TINY, quiet=True)
    Path("held").rename("held now")
    forget(monkeypatch, tmp_path)
    assert command(["eval", "run"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("name its new place: isoflop eval run --heldout PATH")
    assert command(["eval", "run", "--heldout", "held now"]) == 0
    assert command(["train", "--resume", "run", "--budget", "+5steps"]) == 2
    assert "isoflop train --resume run --heldout PATH" in capsys.readouterr().err
    assert command(["train", "--resume", "run", "--budget", "+5steps", "--heldout", "other.txt"]) == 2
    assert "isoflop train texts --heldout other.txt --init run" in capsys.readouterr().err
    assert command(["train", "--resume", "run", "--budget", "+5steps", "--heldout", "held now"]) == 0

    # it is remembered, and both may move
    forget(monkeypatch, tmp_path)
    assert command(["eval", "run"]) == 0
    Path("texts").rename("texts now")
    Path("held now").rename("held then")
    forget(monkeypatch, tmp_path)
    capsys.readouterr()
    assert command(["eval", "run"]) == 2
    assert "isoflop eval run --moved SOURCE --heldout PATH" in capsys.readouterr().err
    assert command(["eval", "run", "--moved", "texts now", "--heldout", "held then"]) == 0
    assert command(["train", "--resume", "run", "texts now", "--heldout", "held then", "--budget", "+5steps"]) == 0


def test_a_run_without_named_held_out_text_says_so(run, capsys):
    assert command(["eval", "run", "--moved", "moved", "--heldout", "moved"]) == 2
    assert "held out a share of its own text" in capsys.readouterr().err


def test_its_own_text_under_another_name_is_not_taken_for_held_out_text(run, tmp_path, capsys):
    found = isoflop.evaluate(run, ["moved"])
    assert found.notes[-1].endswith("isoflop eval run --moved SOURCE")
    assert command(["eval", "run", "moved"]) == 0
    assert f"note: {found.notes[-1]}" in capsys.readouterr().out
    write_texts(tmp_path / "other", files=5)
    assert not isoflop.evaluate(run, ["other"]).notes


def test_eval_reports_text_in_the_same_words(run, tmp_path, capsys):
    (tmp_path / "mixed.jsonl").write_text('{"text": "a whole record of text"}\n{"tex": 3}\n' * 20)
    assert command(["eval", "run", "mixed.jsonl"]) == 0
    assert "not used: 20 records" in capsys.readouterr().out
    assert command(["eval", "run", "mixed.jsonl", "--strict"]) == 2
    assert "without --strict it would be skipped" in capsys.readouterr().err
    with pytest.raises(UserError, match="without --strict"):
        isoflop.evaluate(run, ["mixed.jsonl"], strict=True)
    for option in (["--strict"], ["--set", "data.encoding=cp1252"], ["--text-column", "body"]):
        assert command(["eval", "run", *option]) == 2  # of what the run held out itself, nothing is read anew
        assert f"isoflop eval run SOURCE {option[0]}" in capsys.readouterr().err


def test_prepared_text_may_be_named_as_the_new_place(run, tmp_path):
    config = read_run(run).config
    sources = (f"texts={tmp_path / 'moved'}",)
    from isoflop.config import from_dict
    from isoflop.trainer import RunConfig

    data = from_dict(RunConfig, {**config, "data": {**config["data"], "sources": list(sources)}}).data
    prepare(data, tmp_path / "prepared")
    isoflop.resume(run, "+5steps", sources=["prepared"], quiet=True)
    assert read_run(run).result.step == 25


def test_several_sources_keep_their_names_weights_and_order(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("2024", "b"):
        write_texts(tmp_path / name, files=30 if name == "b" else 45)
        for own in range(40):  # texts that no other source has, of which a small budget takes some
            lines = "".join(f"what only {name} has: {own} {i * i}\n" for i in range(100))
            (tmp_path / name / f"own-{own}.txt").write_text(lines)
    isoflop.pretrain(["2024:0.3", "b:0.6"], "10steps", "run", assignments=TINY, quiet=True)
    for name in ("2024", "b"):
        shutil.move(name, f"at-{name}")
    forget(monkeypatch, tmp_path)
    assert relocated(read_run("run"), ["2024:0.3", "b:0.6"], ["b=at-b", "2024=at-2024"]) == (
        f"2024={tmp_path / 'at-2024'}:0.3",
        f"b={tmp_path / 'at-b'}:0.6",
    )
    with pytest.raises(UserError, match="2 sources and 1 are named"):
        isoflop.resume("run", "+5steps", sources=["at-b"], quiet=True)
    isoflop.resume("run", "+5steps", sources=["at-2024", "at-b"], quiet=True)


@pytest.mark.parametrize("option", [["--init", "x"], ["--out", "y"], ["--config", "z.json"], ["--strict"]])
def test_arguments_that_resume_does_not_take_name_init(option, capsys):
    assert command(["train", "--resume", "runs/books-1", *option]) == 2
    assert "isoflop train SOURCE --init runs/books-1" in capsys.readouterr().err


def test_init_is_measured_before_and_after_on_the_same_text(corpus, tmp_path, capsys):
    isoflop.pretrain([str(corpus)], "20steps", tmp_path / "first", assignments=TINY, quiet=True)
    first = read_run(tmp_path / "first").result.heldout.bits_per_byte
    named = {"init": tmp_path / "first", "assignments": QUICK}
    isoflop.pretrain([str(corpus)], "10steps", tmp_path / "second", **named)
    out, run = capsys.readouterr().out, read_run(tmp_path / "second")
    assert run.plan.init_bits_per_byte == pytest.approx(first, rel=1e-3)  # the same weights
    before = f"{run.plan.init_bits_per_byte:.3f}"
    assert f"before training: {before} bits per byte held-out" in out
    assert f"; {before} before training, on the same text" in out
    isoflop.resume(tmp_path / "second", "+5steps")
    assert f"; {before} before training" in capsys.readouterr().out


def test_an_extension_names_the_step_that_it_returns_to(corpus, tmp_path, capsys):
    isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=TINY, quiet=True)
    isoflop.resume(tmp_path / "run", "+10steps")
    out = capsys.readouterr().out
    assert (
        "extended by +10steps: returns to step 15, before the decay of the learning rate, and continues to step 30"
        in out
    )
    assert "the checkpoint of step 20 is kept in" in out
