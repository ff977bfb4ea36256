"""Invalid input: one clear line that names it, exit code 2, and nothing on disk is changed."""

import gzip
import io
import json
import shutil
from pathlib import Path

import pytest

from isoflop.cli import run as cli
from isoflop.records import RunFolder
from small import TINY, copy_into, train_in, tree_of

SMALL = [word for text in TINY for word in ("--set", text)]


def refused(capsys, *arguments: str) -> str:
    """Run a command that must be refused; returns its message."""
    capsys.readouterr()
    assert cli(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def train(tmp_path, capsys):
    """Train in `out` with these arguments, which must be refused without leaving anything there."""

    def call(*arguments: str) -> str:
        out = tmp_path / "out"
        message = refused(capsys, "train", *arguments, "--out", str(out), *SMALL)
        assert not out.exists()
        return message

    return call


def test_a_missing_path(train):
    assert "/no/such/text" in train("/no/such/text", "--budget", "20steps")


def test_an_empty_corpus(train, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in train(str(tmp_path / "empty.txt"), "--budget", "20steps")


def test_a_corpus_smaller_than_one_context(train, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"a word {name}")
    assert "context" in train(str(tmp_path / "*.txt"), "--budget", "20steps", "--heldout", str(tmp_path / "a.txt"))


def test_a_folder_of_images(train, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    assert "pictures" in train(str(folder), "--budget", "20steps")


def test_no_text_column(train, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "some text"}\n' * 20)
    message = train(str(tmp_path / "a.jsonl"), "--budget", "20steps")
    assert "body" in message and "text_column" in message


def test_a_truncated_gz(train, tmp_path, corpus):
    whole = gzip.compress(b"".join(p.read_bytes() for p in sorted(corpus.iterdir())))
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
    assert "a.txt.gz" in train(str(tmp_path / "a.txt.gz"), "--budget", "20steps")


@pytest.mark.parametrize("budget", ["soon", "0s", "-3m", "3 bananas", "1e3"])
def test_a_nonsense_or_too_small_budget(train, corpus, budget):
    assert budget.split()[0].lstrip("-") in train(str(corpus), f"--budget={budget}").replace("1000flop", "1e3")


def test_an_unknown_field(train, corpus):
    assert "model.layers" in train(str(corpus), "--budget", "20steps", "--set", "model.layer=3")


def test_an_unknown_entry_of_a_slot(train, corpus):
    message = train(str(corpus), "--budget", "20steps", "--set", "model.norm=rsm")
    assert "rsm" in message and "rms" in message


def test_a_folder_that_cannot_be_created_is_reported_at_once(capsys, corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("isoflop.trainer.causal_lm.survey", lambda data: pytest.fail("work began before the refusal"))
    run = str(tmp_path / "file" / "run")
    message = refused(capsys, "train", str(corpus), "--budget", "20steps", "--out", run, *SMALL)
    assert "Not a directory" in message and "free some space" not in message


def test_a_stream_of_records_without_the_text_column(capsys, tmp_path, monkeypatch):
    records = "".join(f'{{"content": "document {i} {"word " * 50}"}}\n' for i in range(200)).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(records)))
    message = refused(capsys, "prepare", "-", "--out", str(tmp_path / "out"))
    assert "'text'" in message and "content" in message


@pytest.mark.parametrize("budget", ["1e99h", "1e300", "1e20steps", "$1e90@1/h"])
def test_a_budget_beyond_all_runs_is_refused_before_the_machine_is_timed(train, corpus, monkeypatch, budget):
    monkeypatch.setattr("isoflop.plan.planner.choose_runtime", lambda *_: pytest.fail("the machine was timed"))
    message = train(str(corpus), "--budget", budget)
    assert f"'{budget}' is more than" in message and "write 90s" in message


@pytest.mark.parametrize("option", ["--budget", "--out", "--init", "--recipe", "--heldout", "--task"])
def test_an_option_without_its_value_as_from_an_unset_variable(capsys, corpus, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    for words in ([option, ""], [f"{option}="]):
        assert f"{option} is empty" in refused(capsys, "train", str(corpus), *words, *SMALL)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "setting", ["batch.windows=documents", "batch.ramp_from=8 batch.ramp_share=0.3", "batch.rates=sqrt"]
)
def test_a_setting_of_text_is_refused_for_pairs_before_a_plan_is_shown(capsys, tmp_path, monkeypatch, setting):
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\t{i * i}\n" for i in range(99)))
    monkeypatch.setattr("isoflop.plan.planner.choose_runtime", lambda *_: pytest.fail("the machine was timed"))
    words = ["--set", *setting.split()]
    message = refused(capsys, "train", "--task", "seq2seq", str(tmp_path / "pairs.tsv"), "--dry-run", *words)
    assert message.count(setting.partition("=")[0]) == 2 and "leave out" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_in(folder)
    return folder


@pytest.fixture
def finished(trained, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return copy_into(tmp_path, trained, "finished")


def test_eval_follows_its_own_advice_for_other_text(finished, tmp_path, capsys):
    """What a refusal names works in eval too: a column with the source, and --set."""
    (tmp_path / "b.jsonl").write_text("".join(f'{{"body": "document {i}"}}\n' for i in range(9)))
    (tmp_path / "latin.txt").write_bytes("Le café près de la forêt était fermé.\n".encode("latin-1") * 9)
    message = refused(capsys, "eval", str(finished), str(tmp_path / "b.jsonl"))
    assert f"{tmp_path}/b.jsonl@body" in message
    assert cli(["eval", str(finished), f"{tmp_path}/b.jsonl@body"]) == 0
    assert cli(["eval", str(finished), f"{tmp_path}/b.jsonl", "--set", "data.text_column=body"]) == 0
    assert cli(["eval", str(finished), f"{tmp_path}/latin.txt", "--set", "data.encoding=latin-1"]) == 0
    assert "data.encoding" in refused(capsys, "eval", str(finished), str(tmp_path), "--set", "model.layers=3")


def test_commands_that_need_a_run(finished, capsys, tmp_path):
    corpus = tmp_path / "texts"
    before = tree_of(finished)
    assert "finished" in refused(capsys, "train", str(corpus), "--out", str(finished), "--budget", "20steps")
    assert "+10m" in refused(capsys, "train", "--resume", str(finished))
    assert "holds no run" in refused(capsys, "train", "--resume", str(tmp_path / "nowhere"))
    assert "isoflop runs" in refused(capsys, "sample", str(corpus))
    assert "temperature" in refused(capsys, "sample", str(finished), "--temperature", "-1")
    assert "float16 is not one of" in refused(capsys, "sample", str(finished), "--dtype", "float16")
    assert "UTF-8" in refused(capsys, "sample", str(finished), "--prompt", "\udcff bad")
    assert "--seed" in refused(capsys, "sample", str(finished), "--seed", str(10**30))
    assert "--windows docs is not one of" in refused(capsys, "eval", str(finished), "--windows", "docs")
    assert "--init" in refused(capsys, "import", str(finished), "--out", str(tmp_path / "imported"))
    assert "too large" in refused(capsys, "train", "--resume", str(finished), "--budget", "+1e15steps")
    for option in (["--dry-run"], ["--strict"], ["--set", "seed=2"], ["--init", str(finished)]):
        assert option[0] in refused(capsys, "train", "--resume", str(finished), "--budget", "+5steps", *option)
    assert "/no/such" in refused(capsys, "eval", str(finished), "/no/such")
    assert tree_of(finished) == before


def test_flipped_bits(finished, capsys):
    run = RunFolder(finished)
    last = max(run.checkpoints.iterdir())
    tensors = next(last.rglob("*.safetensors"))
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    assert tensors.name in refused(capsys, "sample", str(finished))
    tensors.write_bytes(good)
    data = Path(json.loads(run.data.read_text())["folder"])
    shard = next(p for p in sorted(data.iterdir()) if p.suffix not in (".json",))
    bits = shard.read_bytes()
    shard.write_bytes(bits[:-3] + bytes([bits[-3] ^ 4]) + bits[-2:])
    before = tree_of(finished)
    message = refused(capsys, "train", "--resume", str(finished), "--budget", "+20steps")
    assert shard.name in message
    assert tree_of(finished) == before  # a refused extension takes nothing apart
    shutil.rmtree(data)


def test_a_full_disk(finished, capsys, monkeypatch):
    """Writing fails as on a full disk: one line, and the earlier checkpoints are what they were."""
    before = tree_of(finished / "checkpoints")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(RunFolder, "append", full)
    assert "No space left" in refused(capsys, "train", "--resume", str(finished), "--budget", "+20steps")
    monkeypatch.undo()
    after = tree_of(finished)
    assert all(bytes_ in after.values() for bytes_ in before.values())  # what there was is still there, if moved


def test_one_damaged_run_does_not_hide_the_others(finished, capsys):
    other = finished.with_name("other")
    shutil.copytree(finished, other)
    (other / "config.json").write_text("{")
    assert cli(["runs", str(finished.parent)]) == 0
    message = capsys.readouterr().out
    assert "damaged" in message and "finished" in message


@pytest.mark.parametrize("more", ["+10s", "+1000tok", "+1e9"])
def test_an_extension_in_a_unit_that_no_step_has_measured(finished, capsys, more):
    (finished / "metrics.jsonl").write_text("")
    before = tree_of(finished)
    assert "extend it by steps" in refused(capsys, "train", "--resume", str(finished), "--budget", more)
    assert tree_of(finished) == before


def test_resume_needs_a_run_and_not_its_checkpoint(corpus, tmp_path, capsys):
    """A checkpoint holds a config.json like a run; nothing is written into it. And an empty variable is no new run."""
    out = tmp_path / "run"
    assert cli(["train", str(corpus), "--budget", "6steps", "--out", str(out), *SMALL]) == 0
    checkpoint = out / "checkpoints" / "step-00000006"
    before = tree_of(out)
    assert f"--resume {out}," in refused(capsys, "train", "--resume", str(checkpoint))
    assert "--resume is empty" in refused(capsys, "train", "--resume", "", "--out", str(tmp_path / "new"))
    assert tree_of(out) == before and not (tmp_path / "new").exists()
