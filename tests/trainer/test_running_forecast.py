"""Running forecasts: the same with and without an interruption, and without changing the run's bits."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from isoflop.config import override
from isoflop.optim.config import ScheduleConfig
from isoflop.optim.timetable import Timetable
from isoflop.records import Expectation, HeldOutLine, Plan, RunFolder, read_lines, read_run
from isoflop.report.page import write_report
from isoflop.screen import Screen
from isoflop.trainer import RunConfig, hooks, train
from isoflop.trainer.curve import Forecast
from isoflop.trainer.hooks import HeldOut, Hook
from isoflop.trainer.running_forecast import BitsConversion, RunningForecast
from small import TINY, CutAt, PowerCut, write_texts

STEPS = 80


class Recorder(Hook):
    def __init__(self):
        self.lines = []

    def forecast(self, state, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def corpus_and_runs(tmp_path_factory):
    """A run without forecasts, one with them, and one that was cut before the decay and resumed."""
    folder = tmp_path_factory.mktemp("course")
    texts = write_texts(folder / "texts")
    more = [f"steps={STEPS}", "guard.preflight=false", "every.checkpoint=25", "evaluate_tokens=1024", "every.sample=0"]
    config = override(RunConfig(), [*TINY, f'data.sources=["{texts}"]', "data.heldout_fraction=0.05", *more])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_HOME", str(folder / "home"))
        train(config, folder / "plain", hooks=[HeldOut()])
        recorder = Recorder()
        course = RunningForecast(Plan.blank(), [recorder], lambda text: None)
        patch.setattr(hooks, "PROBE_SHARE", 1.0)
        train(config, folder / "seen", hooks=[HeldOut((course,), probe=True), course])
        with pytest.raises(PowerCut):
            cut = RunningForecast(Plan.blank(), [], lambda text: None)
            train(config, folder / "cut", hooks=[HeldOut((cut,), probe=True), cut, CutAt(37)])
        again = RunningForecast(Plan.blank(), [], lambda text: None)
        train(config, folder / "cut", hooks=[HeldOut((again,), probe=True), again], resume=True)
    return folder, recorder


def bare(lines):
    return [line.updated(seconds=None) for line in lines]


def test_running_forecasts_change_no_bits_and_are_the_same_after_a_resume(corpus_and_runs):
    folder, recorder = corpus_and_runs
    plain, seen, cut = (read_run(folder / name) for name in ("plain", "seen", "cut"))
    assert [(line.loss, line.grad_norm) for line in seen.training] == [
        (line.loss, line.grad_norm) for line in plain.training
    ]
    assert [line.heldout_loss for line in seen.heldout] == [line.heldout_loss for line in plain.heldout]
    assert not plain.forecasts and len(seen.forecasts) > 5
    assert bare(seen.forecasts) == bare(cut.forecasts) == bare(recorder.lines)
    assert [line.averaged_loss for line in seen.heldout] == [line.averaged_loss for line in cut.heldout]


def test_a_forecast_is_of_the_end_and_its_interval_contains_its_value(corpus_and_runs):
    run = read_run(corpus_and_runs[0] / "seen")
    for line in run.forecasts:
        assert line.forecast_low < line.forecast_bits_per_byte < line.forecast_high
        assert line.end_step == STEPS and line.fan[-1][0] == run.training[-1].tokens
        assert line.fan[-1][1] == pytest.approx(line.forecast_bits_per_byte, abs=1e-4)
    last = run.forecasts[-1]
    reached = [line.wide_bits_per_byte for line in run.heldout if line.wide_bits_per_byte]
    assert len(reached) == 1  # more of the held-out text was measured, once
    assert last.forecast_bits_per_byte == pytest.approx(run.heldout[-1].heldout_bits_per_byte, rel=0.1)


def test_the_report_shows_them(corpus_and_runs):
    page = write_report([corpus_and_runs[0] / "seen"]).read_text()
    assert "Running forecasts of the final bits per byte" in page
    assert "on course for" in page


def test_measuring_a_part_of_the_held_out_text_widens_the_interval():
    line = HeldOutLine(step=10, heldout_loss=3.0, heldout_bits_per_byte=1.5)
    part, whole = BitsConversion.of([line], 8192, 50_000), BitsConversion.of([line], 8192, 8192)
    assert whole == BitsConversion(0.5, 0.0) and part.bits == 0.5 and part.deviation > 0.01
    wide = line.updated(wide_loss=3.1, wide_bits_per_byte=1.56, wide_tokens=40_000)
    found = BitsConversion.of([wide, line], 8192, 50_000)
    assert found.bits == pytest.approx(0.52) and 0 < found.deviation < part.deviation
    assert BitsConversion.of([], 8192, 50_000) is None


def state_at(folder, step, schedule="wsd", seconds=0.0, planned=1000, steps=1000, epochs=0.5, skips=0):
    config = override(RunConfig(), [f"steps={planned}", f"seconds={seconds}", f"schedule.name={schedule}"])
    tokens = SimpleNamespace(tokens=lambda step: 1000 * step)
    account = SimpleNamespace(heldout=SimpleNamespace(tokens=10_000))
    unique = 1e6 * steps / 1000 / epochs
    prepared = SimpleNamespace(sources=["a"], train_tokens=lambda name: unique, account=lambda: account)
    return SimpleNamespace(
        config=config,
        step=step,
        folder=RunFolder(folder),
        timetable=Timetable(ScheduleConfig(name=schedule), steps),
        batches=tokens,
        prepared=prepared,
        skips=[SimpleNamespace(action="skip")] * skips,
    )


@pytest.mark.parametrize(
    ("forecast", "state", "advice"),
    [
        (1.80, {}, r"on course for 1.80 .*worse than the plan's 1.40 to 1.60: .*--resume .* --budget \+3m"),
        (1.20, {}, r"on course for 1.20 .*better than the plan's 1.40 to 1.60: nothing is wrong"),
        (1.80, {"skips": 20}, r"20 bad steps were discarded; .*--set optim.lr=0.005 optim.matrix_lr=0.0075"),
        (1.80, {"seconds": 180.0, "planned": 2000}, r"1,000 of 2,000 planned steps fit into the time; .*\+3m"),
        (1.80, {"epochs": 9.0}, r"the text will be read 9 times; name more text"),
        (1.80, {"schedule": "cosine"}, r"harder than the plan assumed; a larger --budget"),
        (1.50, {}, None),
    ],
)
def test_leaving_the_planned_interval_is_reported_once_with_advice(tmp_path, forecast, state, advice):
    expected = Expectation(bits_per_byte=1.5, low=1.4, high=1.6, level=0.9)
    plan = Plan(budget="3m", steps=state.get("planned", 1000), expected=expected)
    lines = []
    course = RunningForecast(plan, [], lines.append)
    found = Forecast(forecast, forecast - 0.05, forecast + 0.05, ())
    for step in (50, 150, 200, 300):
        course.compare(state_at(tmp_path, step, **state), found)
    assert len(lines) == (advice is not None)
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["off course"] * len(lines)
    if advice:
        assert lines[0].startswith("step 150: ")
        assert re.search(advice, lines[0])


def test_a_single_forecast_outside_the_interval_is_not_reported(tmp_path):
    expected = Expectation(bits_per_byte=1.5, low=1.4, high=1.6, level=0.9)
    lines = []
    course = RunningForecast(Plan(budget="3m", steps=1000, expected=expected), [], lines.append)
    for step, value in ((200, 1.8), (300, 1.5), (400, 1.8), (500, 1.5)):
        course.compare(state_at(tmp_path, step), Forecast(value, value - 0.05, value + 0.05, ()))
    assert not lines


def test_the_screen_shows_it_next_to_the_loss(corpus_and_runs, monkeypatch):
    line = read_run(corpus_and_runs[0] / "seen").forecasts[-1]
    line = replace(line, forecast_bits_per_byte=1.516, forecast_low=1.498, forecast_high=1.541)
    screen = Screen(quiet=True)
    state = SimpleNamespace(flops_per_token=1.0, tokens=1, prepared=SimpleNamespace(sources=[]))
    training = read_run(corpus_and_runs[0] / "seen").training[-1]
    assert "on course" not in " ".join(screen._status_parts(state, training))
    screen.forecast(state, line)
    assert screen._status_parts(state, training)[1] == "on course for 1.52 (1.50 to 1.54)"
    for width, wanted in ((120, "on course for 1.52 (1.50 to 1.54)"), (80, "on course for 1.52 ")):
        monkeypatch.setattr(type(screen.console), "width", width)
        assert wanted in screen._training_text(state, training) + " "
