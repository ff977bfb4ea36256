"""Extending a run: its new length and its new forecast."""

import shutil
from pathlib import Path

import pytest

from isoflop.budget import parse_budget
from isoflop.config import from_dict
from isoflop.errors import UserError
from isoflop.job.extend import extend, extended_length, extended_plan
from isoflop.optim.timetable import Timetable
from isoflop.records import DecisionLine, Plan, Run, RunFolder, TrainingLine, read_run
from isoflop.trainer import RunConfig
from small import tree_of

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def run(tmp_path) -> Run:
    shutil.copytree(GOLDEN / "words", tmp_path / "words")
    return read_run(tmp_path / "words")


def length(more: str, *lines: TrainingLine, decisions: tuple[DecisionLine, ...] = (), seconds: float = 0.0):
    config = RunConfig(steps=100, seconds=seconds)
    run = Run(RunFolder(Path("run")), training=list(lines), decisions=list(decisions))
    return extended_length(run, config, Timetable(config.schedule, config.steps), parse_budget(more))


def test_the_length_of_an_extended_run():
    last = TrainingLine(step=100, seconds=50.0, tokens=20_000, flops=1e9)
    assert length("+40steps", last) == length("+40steps") == (0.0, 140)
    assert length("+4000tok", last) == (0.0, 120)
    assert length("+5e8", last) == (0.0, 150)
    assert length("+25s", last) == (75.0, 150)  # half a second per step
    assert length("+25s", last, seconds=60.0) == (85.0, 170)  # added to its limit
    assert length("+25s", last, decisions=(DecisionLine(seconds=70.0),)) == (95.0, 190)
    assert length("+1tok", last) == (0.0, 101)


@pytest.mark.parametrize("more", ["+10s", "+1000tok", "+1e9"])
def test_an_extension_in_an_unmeasured_unit_is_refused(more):
    with pytest.raises(UserError, match="extend it by steps"):
        length(more)


def test_the_plan_of_the_longer_run(run):
    plan = extended_plan(run.plan, parse_budget("+24steps"), 0.0, 48)
    assert (plan.steps, plan.tokens) == (48, 2 * run.plan.tokens)
    assert plan.flops == pytest.approx(2 * run.plan.flops) and plan.budget == "48steps"
    shorter = extended_plan(run.plan, parse_budget("+2steps"), 0.0, 26)
    assert plan.expected.bits_per_byte < shorter.expected.bits_per_byte
    lines = {choice.name: choice for choice in plan.choices}
    assert lines["steps"].value == "48" and lines["steps"].reason == "extended by +24steps; 24 before"
    other = extended_plan(run.plan, parse_budget("+9s"), 20.0, 48)
    assert other.budget == "48steps" and other.seconds == 20.0  # kinds that do not add up
    assert extended_plan(Plan(kind="given"), parse_budget("+9s"), 9.0, 48) == Plan(kind="given")


def test_extending_returns_to_before_the_decay_and_writes_the_returned_plan(run):
    config = from_dict(RunConfig, run.config)
    plan = extend(run, config, parse_budget("+12steps"), run.data.fingerprint)
    after = read_run(run.folder.path)
    assert after.plan.to_dict() == plan.to_dict() and plan.steps == 36
    assert after.status == "stopped" and after.decisions[-1].steps == 36
    assert len(after.training) == after.decisions[-1].at_step < len(run.training)
    assert list((run.folder.path / "ended").iterdir())


def test_a_refused_extension_changes_nothing(run):
    config, before = from_dict(RunConfig, run.config), tree_of(run.folder.path)
    with pytest.raises(UserError, match=r"write \+12steps"):
        extend(run, config, parse_budget("12steps"), run.data.fingerprint)
    with pytest.raises(UserError, match="the data of this run changed"):
        extend(run, config, parse_budget("+12steps"), "another")
    assert tree_of(run.folder.path) == before
