"""Runs of a ladder that share their beginning, and a whole ladder of seconds."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import isoflop.ladder.runs as making
from isoflop.budget import parse_budget
from isoflop.cli.app import run as command
from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.data.walk import kind_of
from isoflop.errors import UserError
from isoflop.job import Listener, pretrain
from isoflop.job.extend import extended_plan
from isoflop.ladder import fit
from isoflop.ladder.begin import Wanted
from isoflop.ladder.climb import climb
from isoflop.ladder.fit import climbed
from isoflop.ladder.pace import Pace
from isoflop.ladder.runs import RUNS, Piece, config_for, perform, rows
from isoflop.ladder.store import Begun, Folder
from isoflop.plan import fitted
from isoflop.plan.by_law import score_of
from isoflop.records import read_lines, read_run
from isoflop.trainer import RunConfig
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.task import make_task
from ladders import law_runs
from small import TINY, CutAt, PowerCut, write_texts

STEPS = 10


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("ladder") / "texts", files=30))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def same_home(home, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", home)
    monkeypatch.setattr(making, "MEASURED", 4096)


def piece(texts: str, folder: Path, lengths=(1, 2, 4), **changes) -> Piece:
    config = override(RunConfig(data=DataConfig(sources=(texts,), vocab_size=320, workers=1)), TINY)
    data = make_task(config).prepare_data(config.data)
    config = replace(config, model=replace(config.model, vocab_size=data.vocab_size), data=config.data)
    made = config_for(replace(config, batch=replace(config.batch, sequences=2)), STEPS, 1.0, 0)
    made = replace(made, **changes)
    unique = data.train_tokens(data.sources[0])
    return Piece(made, lengths, 1.0, "rung", data.account().folder, data.fingerprint, unique, folder)


@pytest.fixture(scope="module")
def together(texts, tmp_path_factory, home):
    """Runs of three lengths that share their beginning."""
    os.environ["ISOFLOP_HOME"], before = home, os.environ.get("ISOFLOP_HOME")
    kept, making.MEASURED = making.MEASURED, 4096
    try:
        one = piece(texts, tmp_path_factory.mktemp("together"))
        return one, perform(one)
    finally:
        making.MEASURED = kept
        os.environ.pop("ISOFLOP_HOME") if before is None else os.environ.update(ISOFLOP_HOME=before)


def test_each_length_is_a_run_and_a_line(together):
    one, made = together
    assert [(run.length, run.steps) for run in made] == [(1, STEPS), (2, 2 * STEPS), (4, 4 * STEPS)]
    assert [run.tokens for run in made] == [one.config.tokens * length for length in (1, 2, 4)]
    assert [run.key for run in made] == [line["key"] for line in read_lines(one.folder / RUNS)]
    assert made[0].bits_per_byte > made[2].bits_per_byte > 0
    assert not one.path.exists()


def test_what_is_on_record_is_not_run_again(together, monkeypatch):
    one, _ = together
    monkeypatch.setattr(making, "train_steps", None)  # would raise
    again = replace(one, done=frozenset(rows(one.folder)))
    assert again.missing == () and perform(again) == ()


def test_a_length_alone_is_the_same_run(together, texts, tmp_path):
    _, made = together
    (alone,) = perform(piece(texts, tmp_path, (2,)))
    assert alone.key == made[1].key and alone.bits_per_byte == pytest.approx(made[1].bits_per_byte, rel=1e-3)


def test_a_piece_that_was_cut_goes_on_with_the_same_bits(together, texts, tmp_path, monkeypatch):
    _, made = together
    one, train = piece(texts, tmp_path), making.train_steps

    def cut(config, out, *, hooks, decisions=(), **told):
        return train(config, out, hooks=[*hooks, CutAt(15)], decisions=decisions, **told)

    monkeypatch.setattr(making, "train_steps", cut)
    with pytest.raises(PowerCut):
        perform(one)
    assert [run.length for run in rows(tmp_path).values()] == [1]
    monkeypatch.setattr(making, "train_steps", train)
    rest = perform(replace(one, done=frozenset(rows(tmp_path))))
    assert [run.bits_per_byte for run in rest] == [run.bits_per_byte for run in made[1:]]


def test_no_run_is_begun_that_the_time_does_not_allow(texts, tmp_path):
    late = replace(piece(texts, tmp_path), until=0.0)
    assert perform(late) == () and not rows(tmp_path)


def test_a_run_that_diverges_is_an_observation(texts, tmp_path, monkeypatch):
    def diverges(*_, **__):
        raise Diverged("step 3: no number")

    monkeypatch.setattr(making, "train_steps", diverges)
    one = piece(texts, tmp_path)
    (made,) = perform(one)
    assert made.diverged and made.bits_per_byte is None
    assert list(rows(tmp_path).values()) == [made]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--budget", "1e15"], "time for all runs together"),
        (["--targets", "500steps"], "a target is time or FLOPs"),
        (["--workers", "-1"], "--workers -1 is negative"),
        (["--set", "task=seq2seq"], "a ladder is for text alone"),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments, said, texts, tmp_path, capsys):
    assert command(["ladder", texts, "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(texts, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert command(["ladder", texts, "--out", str(tmp_path)]) == 2
    assert "holds no ladder" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_ladder_s_folder_is_no_text_of_the_user(texts, tmp_path):
    folder = Folder(tmp_path / "ladders" / "one")
    folder.begin(Begun(sources=(texts,)))
    assert kind_of([path.name for path in folder.path.iterdir()], str(folder.path)) == "ladder's folder"
    assert folder.begun().sources == (texts,)


FIELDS = ["model.context=64", "data.vocab_size=320", "runtime.dtype=float32", "batch.sequences=16", "data.workers=1"]


def planned(texts: str, *fields: str, budget: str = "1e12flop", **told):
    return pretrain([texts], budget, dry_run=True, assignments=[*FIELDS, *fields], **told)


def law_for(advice):
    """A law of made-up runs that holds for a plan's data and recipe."""
    data = make_task(advice.config).prepare_data(advice.proposal.data)
    found = climbed(law_runs(unique=advice.unique_tokens), 100)
    known = {"text": fitted.text_key(advice.workload), "fingerprint": data.fingerprint, "corpus": "texts"}
    holds_for = fit.about(found, advice.config, unique_tokens=advice.unique_tokens, **known)
    return fit.keep(found, holds_for, advice.config)


def test_a_plan_takes_shape_forecast_and_tokenizer_from_the_law_of_its_text(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "home"))
    before = planned(texts)
    assert before.law is None and "ladder" not in before.plan().to_dict()
    law = law_for(before)

    after = planned(texts)
    assert after.law.key == law.key
    assert after.expected == law.expect(after.parameters, after.tokens, after.unique_tokens)
    best = min(after.proposal.candidates, key=lambda one: score_of(one, after.proposal, after.unique_tokens, law))
    assert after.config.model.d_model == best.config.model.d_model
    assert any(choice.name == "ladder" and str(law.path) in choice.reason for choice in after.choices)
    plain = after.plan().to_dict()
    assert plain["kind"] == "ladder" and plain["ladder"]["key"] == law.key
    longer = extended_plan(after.plan(), parse_budget("+1e12flop"), 0.0, 2 * after.config.steps)
    assert longer.expected.bits_per_byte < after.expected.bits_per_byte and "ladder" in longer.expected.source

    # with other rates, another context or another recipe it does not hold, and that is said
    told: list[str] = []
    for field in ("optim.lr=0.015", "model.context=128"):
        other = planned(texts, field, listener=Listener(say=told.append))
        assert other.law is None and other.plan().kind == "prior"
    assert len([line for line in told if line.startswith("note: the law of the ladder")]) == 2
    assert planned(texts, "model.norm=layer").law is None


@pytest.fixture
def quick(monkeypatch):
    """Sizes and lengths of seconds, and nothing that takes time beside them."""
    monkeypatch.setattr("isoflop.ladder.rungs.AROUND", 0.0)
    monkeypatch.setattr("isoflop.ladder.rungs.SHORTEST", 1.0)
    monkeypatch.setattr("isoflop.ladder.rungs.MOST_SIZES", 3)
    monkeypatch.setattr("isoflop.ladder.begin.FEWEST_STEPS", 4)
    monkeypatch.setattr("isoflop.ladder.begin.find_pace", lambda *_: Pace(0, 1, ((32.0, 2e9),)))
    monkeypatch.setattr("isoflop.ladder.climb.SPARE", 100.0)
    monkeypatch.setattr("isoflop.plan.trials.SHORTEST", 0.2)


def test_a_ladder_of_seconds_ends_in_a_law_that_train_uses(quick, texts, tmp_path, monkeypatch):
    told: list[str] = []
    out = tmp_path / "ladder"
    wanted = Wanted((texts,), "60s", ("1e11",), out, assignments=tuple(FIELDS), workers=1)
    assert climb(replace(wanted, dry_run=True), Listener(say=told.append)) is None
    assert not out.exists() or not list(out.iterdir())
    for word in ("runs, about", "sizes:", "learning rates", "it will say"):
        assert any(word in line for line in told), word

    made = climb(wanted, Listener(say=told.append))
    assert made.law is not None and made.climbed.used
    assert {path.name for path in out.iterdir()} >= {"ladder.json", RUNS, "fit.json", "report.html", "frontier.svg"}
    assert made.targets[0].advice.expected is not None
    lines = read_lines(out / RUNS)
    assert {line["role"] for line in lines} == {"rung", "rate", "repeat"}

    # the same command once more makes nothing
    monkeypatch.setattr(making, "train_steps", None)
    again = climb(wanted, Listener(say=told.append))
    assert read_lines(out / RUNS) == lines and again.law.law == made.law.law
    with pytest.raises(UserError, match="other --set"):
        climb(replace(wanted, assignments=()))

    # train uses it, and the run's records say so
    pretrain([texts], "4e9flop", tmp_path / "run", assignments=[*FIELDS, "every.sample=0"])
    run = read_run(tmp_path / "run")
    assert run.plan.kind == "ladder" and run.plan.ladder.key == again.law.key and run.plan.pilots is None
    assert run.result.verdict in ("inside", "better", "worse")
    forecast = json.loads((Path(os.environ["ISOFLOP_HOME"]) / "ledger.jsonl").read_text().splitlines()[-2])
    assert forecast["law"] == again.law.digest
    assert "The ladder" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
