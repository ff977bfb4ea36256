"""Pilots before a run, and the forecast that is recorded before its first step."""

import signal
from pathlib import Path

import pytest

from isoflop.errors import UserError
from isoflop.files import home, spool
from isoflop.job import Listener, pretrain, resume
from isoflop.job.pilots import PILOTS_FILE, PilotMaker
from isoflop.plan.ledger import score
from isoflop.records import read_lines, read_run
from isoflop.records.ledger import DIVERGED, FINISHED, read_ledger
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.signals import Interrupted
from small import CutAt, PowerCut, write_texts

SMALL = [
    "model.layers=2",
    "model.d_model=32",
    "model.heads=2",
    "data.vocab_size=320",
    "data.workers=1",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "batch.sequences=2",
    "every.sample=0",
    "every.checkpoint=5",
]
BUDGET = "8e9flop"
LEFT = "7.6e9flop"  # of it, with pilots


@pytest.fixture(autouse=True)
def small_pilots(monkeypatch):
    monkeypatch.setattr("isoflop.plan.pilot.FROM", {"flops": 1e9})
    monkeypatch.setattr("isoflop.plan.pilot.FEWEST_STEPS", 1)
    monkeypatch.setattr("isoflop.plan.pilot.FEWEST_TOKENS", 0)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("corpus") / "texts"))


def run(texts: str, out: Path, budget: str = BUDGET, *more: str, **options):
    return pretrain([texts], budget, out, assignments=[*SMALL, *more], **options)


def ledger():
    return read_ledger(home() / "ledger.jsonl")


def test_pilots_make_the_forecast_and_are_inside_the_budget(texts, tmp_path):
    result = run(texts, tmp_path / "one", BUDGET)
    made = read_run(tmp_path / "one")
    pilots = made.plan.pilots
    assert pilots and "pilot" in made.plan.expected.source
    assert result.flops + sum(one.flops for one in pilots) <= 8e9
    assert all(one.bits_per_byte > 0 and one.seconds > 0 and one.steps >= 1 for one in pilots)
    assert made.plan.budget == "8e+09flop"
    assert not list(spool().glob("pilot-*"))

    # on record before the first step, and what it came to after the last one
    (forecast,) = ledger().forecasts.values()
    assert forecast.id == made.plan.forecast and forecast.pilots == len(pilots)
    assert forecast.expected == made.plan.expected and len(forecast.expected.intervals) == 3
    assert forecast.plan and forecast.law and forecast.code and forecast.fingerprint == made.data.fingerprint
    (outcome,) = ledger().outcomes
    assert (outcome.forecast, outcome.status) == (forecast.id, FINISHED)
    assert outcome.reached_bits_per_byte == made.result.heldout.bits_per_byte
    assert outcome.time >= forecast.time

    # the same once more: they are on record, and neither they nor making them changes a bit of the run
    run(texts, tmp_path / "two", BUDGET)
    again = read_run(tmp_path / "two")
    assert all(one.reused for one in again.plan.pilots)
    assert again.plan.expected.bits_per_byte == pytest.approx(made.plan.expected.bits_per_byte)
    run(texts, tmp_path / "three", LEFT, pilots=False)
    without = read_run(tmp_path / "three")
    assert without.plan.pilots is None
    for other in (again, without):
        assert [line.loss for line in other.training] == [line.loss for line in made.training]
    assert len(read_lines(home() / PILOTS_FILE)) == len(pilots)


def test_without_room_for_a_pilot_the_run_has_the_whole_budget(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("isoflop.plan.pilot.FEWEST_STEPS", 10**9)
    result = run(texts, tmp_path / "run", BUDGET)
    assert result.flops > 0.96 * 8e9 and read_run(tmp_path / "run").plan.pilots is None


def test_a_dry_run_describes_its_pilots_and_makes_none(texts, tmp_path):
    advice = run(texts, tmp_path / "none", BUDGET, dry_run=True)
    (line,) = [choice for choice in advice.choices if choice.name == "pilots"]
    assert "1 x 32" in line.value and "dry run" in line.reason
    assert not (home() / PILOTS_FILE).exists() and not ledger().forecasts


def test_a_users_recipe_is_forecast_from_pilots_or_not_at_all(texts, tmp_path):
    other = ("model.wiring=post",)
    run(texts, tmp_path / "none", LEFT, *other, pilots=False)
    made = read_run(tmp_path / "none")
    assert made.plan.expected is None and made.result.verdict is None and made.plan.recipe
    assert not ledger().forecasts
    run(texts, tmp_path / "some", BUDGET, *other)
    made = read_run(tmp_path / "some")
    assert made.plan.pilots and made.plan.expected and made.result.verdict in ("inside", "better", "worse")
    assert {one.layers for one in made.plan.pilots} == {2}


@pytest.mark.parametrize("error", [Diverged("step 3: no number"), UserError("no room")])
def test_after_a_failed_pilot_the_prior_is_used(texts, tmp_path, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("isoflop.job.pilots.train_steps", fails)
    run(texts, tmp_path / "run", BUDGET)
    plan = read_run(tmp_path / "run").plan
    assert plan.pilots is None and "prior" in plan.expected.source
    assert any("ended early" in choice.reason for choice in plan.choices if choice.name == "pilots")


def test_a_signal_during_a_pilot_stops_the_command_and_leaves_nothing(texts, tmp_path, monkeypatch):
    def stopped(config, out, **_):
        raise Interrupted(signal.SIGINT, 3, Path(out))

    monkeypatch.setattr("isoflop.job.pilots.train_steps", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(texts, tmp_path / "run", BUDGET)
    assert not (tmp_path / "run").exists() and not list(spool().glob("pilot-*")) and not ledger().forecasts


def test_an_interrupted_run_is_unfinished_until_it_ends(texts, tmp_path):
    cut = Listener(hooks=(CutAt(6),))
    with pytest.raises(PowerCut):
        run(texts, tmp_path / "run", LEFT, pilots=False, listener=cut)
    assert (score(ledger()).unfinished, score(ledger()).whole.forecasts) == (1, 0)
    resume(tmp_path / "run")
    found = score(ledger())
    assert (found.unfinished, found.whole.forecasts) == (0, 1) and len(ledger().forecasts) == 1


class Diverges(CutAt):
    def stepped(self, state):
        if state.step == self.step:
            raise Diverged("made up")


def test_a_diverged_run_is_recorded_as_diverged(texts, tmp_path):
    with pytest.raises(Diverged):
        run(texts, tmp_path / "run", LEFT, pilots=False, listener=Listener(hooks=(Diverges(6),)))
    (outcome,) = ledger().outcomes
    assert outcome.status == DIVERGED and outcome.reached_bits_per_byte is None and outcome.tokens > 0
    assert score(ledger()).whole.diverged == 1


def test_an_extension_gets_its_own_forecast(texts, tmp_path):
    run(texts, tmp_path / "run", "24steps", pilots=False)
    resume(tmp_path / "run", "+12steps")
    first, second = ledger().forecasts.values()
    assert second.replaces == first.id and read_run(tmp_path / "run").plan.forecast == second.id
    assert score(ledger()).whole.forecasts == 2


def test_replanning_a_run_reuses_its_pilots():
    from isoflop.plan.pilot import Pilots
    from isoflop.records import PilotRun

    maker = PilotMaker(print, Pilots((PilotRun(flops=1.0),), spent=2.0), fingerprint="text")

    class Data:
        fingerprint = "text"

    class Other:
        fingerprint = "other"

    assert maker.reuse(None, Data()).runs and maker.reuse(None, Data()).spent == 0.0
    assert not maker.reuse(None, Other()).runs


def test_a_ledger_that_cannot_be_written_does_not_stop_a_run(texts, tmp_path, monkeypatch):
    (home() / "ledger.jsonl").mkdir(parents=True)
    messages = []
    run(texts, tmp_path / "run", "24steps", pilots=False, listener=Listener(say=messages.append))
    assert sum("ledger" in line for line in messages) == 2 and read_run(tmp_path / "run").result.verdict
