"""Calibration: which timings are cached, which are doubted, and which shapes are never built."""

import json
from dataclasses import replace

import pytest

from isoflop import files
from isoflop.budget import parse_budget
from isoflop.errors import UserError
from isoflop.plan import ceiling, known, machine, planner, speeds, trials
from isoflop.plan.advice import Facts
from isoflop.plan.asked import Asked
from isoflop.plan.planner import finalize, propose
from isoflop.processors import Load, Reading
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.causal_lm import LADDER, TextWorkload
from isoflop.trainer.config import resolve_runtime
from isoflop.trainer.throughput import Throughput
from isoflop.trainer.workload import Text

WORKLOAD = TextWorkload(Text(5e6, b""))
PEAK = {"float32": 5e10, "bfloat16": 1e9}


@pytest.fixture
def timed(monkeypatch):
    """Fake timings at 2e10 FLOP/s; `timed.trouble` is the doubt that they report."""

    class Timed(list):
        trouble, share, by_threads = "", 0.4, {}

    asked = Timed()

    def answer(configs, seconds=1.0, data=(), *, times=(), until=0.0):
        asked.append((list(configs), list(times)))
        found = []
        for config in configs:
            rate = asked.share * PEAK["float32"] / WORKLOAD.flops_per_token(config)
            rate *= asked.by_threads.get(config.runtime.threads, 1.0)
            found.append(Throughput(config.tokens_per_step / rate, rate, 10, asked.trouble))
        return found

    monkeypatch.setattr(throughput, "time_in_turns", answer)
    monkeypatch.setattr(throughput, "time_matmul", lambda threads: 1e-4)
    monkeypatch.setattr(ceiling, "measure_peak", lambda device: dict(PEAK))
    monkeypatch.setattr(machine, "quiet", lambda device: True)
    monkeypatch.setattr(speeds, "quiet", lambda device: True)
    monkeypatch.setattr("isoflop.trainer.config.cores", lambda: 4)
    return asked


def plan(budget="60s", *assignments, messages=None):
    asked = Asked(assignments)
    say = print if messages is None else messages.append
    proposal = propose(parse_budget(budget), asked.apply(RunConfig()), WORKLOAD, asked, say)
    return finalize(proposal, Facts(2_000_000, proposal.vocabulary, 2.5))


def reason_of(advice, name):
    return next(choice.reason for choice in advice.choices if choice.name == name)


def test_a_second_plan_times_nothing_and_is_the_same(timed):
    first = plan()
    count = len(timed)
    assert count
    second = plan()
    assert len(timed) == count
    assert second.config == first.config
    assert [c.tokens_per_second for c in second.candidates] == [c.tokens_per_second for c in first.candidates]


def test_cached_timings_are_not_used_on_a_busy_machine(timed, monkeypatch):
    plan()
    count = len(timed)
    monkeypatch.setattr(speeds, "quiet", lambda device: False)
    plan()
    assert len(timed) == count + 1


def test_another_shape_or_version_or_after_a_week_is_timed_again(timed, monkeypatch):
    plan()
    count = len(timed)
    plan("60s", "model.context=128")
    assert len(timed) > count
    count = len(timed)
    now = known.time.time()
    monkeypatch.setattr(known.time, "time", lambda: now + 8 * 86_400)
    assert known.recall("tokens per second", "cpu", "x") is None
    plan()
    assert len(timed) > count


def test_timings_next_to_another_program_are_reported_and_not_cached(timed):
    timed.trouble = "other programs used 1.0 processors"
    messages = []
    advice = plan(messages=messages)
    assert not (files.home() / known.FILE).exists() and not (files.home() / "dtype.json").exists()
    (line,) = [line for line in messages if "other programs" in line]
    assert line.startswith("note: this machine was not left alone")
    assert "timed while other programs used 1.0 processors" in reason_of(advice, "device")
    assert advice.plan().calibration.doubt == timed.trouble
    count = len(timed)
    plan()
    assert len(timed) == 2 * count


def test_a_peak_measured_next_to_another_program_is_not_cached(timed, monkeypatch):
    moments = iter([Reading(0.0, 0.0, 0.0, 0.0, 0.0), Reading(1.0, 1.0, 2.0, 0.0, 0.0)] * 2)
    monkeypatch.setattr(ceiling, "load_now", lambda: Load(0.3, 0.0, 1.0, 1.0, 0.0))
    assert ceiling.machine_peak("cpu", lambda: next(moments)) == PEAK
    assert not (files.home() / ceiling.FILE).exists()


def test_a_peak_is_measured_again_when_the_program_has_ended(timed, monkeypatch):
    busy, quiet = Reading(1.0, 1.0, 2.0, 0.0, 0.0), Reading(1.0, 1.9, 1.95, 0.05, 0.0)
    moments = iter([Reading(0.0, 0.0, 0.0, 0.0, 0.0), busy, Reading(0.0, 0.0, 0.0, 0.0, 0.0), quiet])
    peaks = iter([{"float32": 1e9, "bfloat16": 3e8}, {"float32": 5e9, "bfloat16": 2e8}])
    monkeypatch.setattr(ceiling, "measure_peak", lambda device: next(peaks))
    monkeypatch.setattr(ceiling, "load_now", lambda: Load(0.3, 0.0, 0.0, 2.0, 0.0))
    assert ceiling.machine_peak("cpu", lambda: next(moments)) == {"float32": 5e9, "bfloat16": 3e8}
    assert (files.home() / ceiling.FILE).exists()


def test_steps_above_the_peak_raise_it_and_the_plan_is_made_again(timed):
    timed.share = 4.0  # of the measured peak: another program used the machine while it was measured
    messages = []
    advice = plan(messages=messages)
    assert any("4.0 times this machine's measured peak" in line for line in messages)
    assert advice.peak["float32"] == pytest.approx(4 * PEAK["float32"], rel=0.01)
    (entry,) = json.loads((files.home() / ceiling.FILE).read_text())
    assert entry["peak"]["float32"] == pytest.approx(4 * PEAK["float32"], rel=0.01)
    timed.share = 0.4  # and the plan is the one that the right peak gives
    assert advice.config.model.layers >= plan().config.model.layers


@pytest.mark.parametrize(("faster", "threads"), [({}, 4), ({1: 1.02}, 4), ({1: 3.0}, 1), ({1: 1.3, 2: 1.6}, 2)])
def test_threads_are_chosen_by_measurement(timed, faster, threads):
    timed.by_threads = faster
    advice = plan()
    assert advice.config.runtime.threads == threads
    assert ("times as fast as with all" in reason_of(advice, "device")) == (threads < 4)


def test_threads_that_stall_are_not_tried_with_whole_steps(timed, monkeypatch):
    monkeypatch.setattr(throughput, "time_matmul", lambda threads: 1e-4 if threads < 4 else 5e-3)
    advice = plan()
    assert advice.config.runtime.threads < 4
    assert all(config.runtime.threads < 4 for configs, _ in timed for config in configs)
    assert advice.calibration.doubt  # so that it is not kept
    assert known.recall("threads", "cpu", "") is None


@pytest.mark.parametrize("asked", ["runtime.threads=3", "runtime.dtype=bfloat16"])
def test_a_setting_of_the_user_is_not_timed(timed, asked):
    runtime = plan("60s", asked).config.runtime
    assert asked in (f"runtime.threads={runtime.threads}", f"runtime.dtype={runtime.dtype}")


def test_a_budget_of_steps_keeps_all_threads(timed):
    timed.by_threads = {1: 9.0}
    assert plan("300steps").config.runtime.threads == 4


BUDGETS = ["1s", "30s", "3m", "1h", "3d", "300d", "1e12", "1e17", "1e21", "1e24", "1e6tok", "1e12tok", "1e6steps"]


@pytest.mark.parametrize(
    ("budget", "free"),
    [
        pytest.param(budget, free, marks=[] if free == 2e9 and number % 2 == 0 else [pytest.mark.slow])
        for number, budget in enumerate(BUDGETS)
        for free in (2e9, 16e9)
    ],
)
def test_nothing_larger_than_the_memory_is_built_and_no_step_takes_long(timed, monkeypatch, budget, free):
    monkeypatch.setattr(throughput, "free_memory", lambda device: int(free))
    try:
        advice = plan(budget)
    except UserError as error:
        assert "too small" in str(error)
        return
    for configs, times in timed:
        for config, scale in zip(configs, times, strict=True):
            assert throughput.upper_bound_bytes(config) < free / 2
            assert scale >= 1
            step = WORKLOAD.flops_per_token(config) * config.tokens_per_step
            assert step / (0.35 * PEAK["float32"]) < 1.4
    chosen = next(one for one in advice.candidates if one.chosen)
    assert chosen.tokens_per_second is None or chosen.tokens_per_second * advice.flops / advice.tokens < 5e10


def test_shapes_that_were_not_timed_are_marked_as_extrapolated(timed, monkeypatch):
    monkeypatch.setattr(throughput, "free_memory", lambda device: int(1e9))
    messages = []
    advice = plan("30d", messages=messages)
    assert any(one.extrapolated for one in advice.plan().candidates)
    assert any("extrapolated, too large to be timed here" in line for line in messages)
    shape = next(choice for choice in advice.choices if choice.name == "shape")
    assert "tokens/s extrapolated from smaller shapes" in shape.reason


def test_a_users_model_that_cannot_be_timed_gets_a_plan(timed, monkeypatch):
    monkeypatch.setattr(throughput, "free_memory", lambda device: int(1e6))
    messages = []
    huge = ["model.layers=4", "model.d_model=512", "model.heads=8", "model.head_dim=64"]
    advice = plan("1h", *huge, messages=messages)
    assert not timed
    assert any("extrapolated" in line for line in messages)
    assert "not timed" in reason_of(advice, "device") or "bfloat16" in reason_of(advice, "device")


def test_extrapolated_speed_grows_with_width_up_to_the_peak():
    assert trials.extrapolated(1024, [(64, 1e9), (128, 2e9)], 1e12) == pytest.approx(2e9 * 8**0.3)
    assert trials.extrapolated(1024, [(128, 2e9)], 1e12) == 2e9
    assert trials.extrapolated(1024, [(64, 3e9), (128, 2e9)], 1e12) == 2e9  # rather too low than too high
    assert trials.extrapolated(4096, [(64, 1e9), (128, 2e9)], 3e9) == pytest.approx(2.7e9)
    assert trials.extrapolated(4096, [(64, 1e9), (128, 2e9)], 1e9) == 2e9  # what was seen was seen


def test_every_calibration_is_bounded():
    allowed = [trials.calibration_seconds(parse_budget(text)) for text in BUDGETS]
    assert all(5.0 <= seconds <= 20.0 for seconds in allowed)
    assert trials.calibration_seconds(parse_budget("100s")) == 10.0


def test_every_rung_of_the_ladder_is_reduced_to_a_size_that_can_be_timed(monkeypatch):
    monkeypatch.setattr(throughput, "free_memory", lambda device: int(20e9))
    for layers, width in LADDER[::3]:
        shape = WORKLOAD.shape((layers, width), 4096, 256)
        config = resolve_runtime(replace(RunConfig(), model=replace(RunConfig().model, **shape)))
        trial = trials.trial_of(config, WORKLOAD, 2e10)
        if trial is None:
            continue
        assert trial.config.model == config.model
        assert trial.times * trial.config.batch.sequences == config.batch.sequences


@pytest.mark.parametrize("content", ["", "{}", "[3]", '[{"what": 3}]', "[" * 9, '[{"what": "threads", "value": -1}]'])
def test_a_damaged_cache_is_ignored(content):
    files.home().mkdir(parents=True, exist_ok=True)
    (files.home() / known.FILE).write_text(content)
    assert known.recall("threads", "cpu", "x") is None
    known.remember("threads", "cpu", {"x": ("2 x 64", 2.0)})
    assert known.recall("threads", "cpu", "x") == 2.0
    assert known.forget("cpu", "2 x 64") == 1
    assert known.recall("threads", "cpu", "x") is None


def test_a_dry_run_of_much_text_prepares_none_of_it(timed, monkeypatch):
    class MuchText:
        def workload(self, config, progress=None):
            return TextWorkload(Text(1e12, b""))

        def prepare_data(self, config, progress=None):
            raise AssertionError("this would take days")

    monkeypatch.setattr(planner, "make_task", lambda config: MuchText())
    messages = []
    advice, data = planner.plan(parse_budget("1e21"), RunConfig(), say=messages.append, dry=True)
    assert data is None and advice.config.steps > 0
    assert any("not prepared for a dry run" in line for line in messages)
    assert any("estimated" in choice.reason for choice in advice.choices if choice.name == "tokenizer")
    assert advice.config.model.vocab_size == 65536


def test_estimated_bytes_per_token_are_near_what_was_measured(timed):
    for vocabulary, measured in ((512, 2.4), (2048, 3.06), (16384, 3.98), (35642, 4.11)):
        proposal = propose(parse_budget("1e15"), RunConfig(), TextWorkload(Text(1e9, b"")))
        facts = planner.estimated_facts(replace(proposal, vocabulary=vocabulary), 1e9)
        assert facts.bytes_per_token == pytest.approx(measured, rel=0.1)
