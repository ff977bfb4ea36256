"""Suites during training: scored within their share of the time, without changing the run's bits."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import isoflop
from isoflop import checkpoint
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.evaluate.scores import ask
from isoflop.job import Listener, pretrain, resume
from isoflop.records import RunFolder, read_run
from isoflop.report.page import write_report
from isoflop.trainer import RunConfig
from isoflop.trainer import suites as module
from isoflop.trainer.suites import Suites, first_items, make_suites, shuffle_evenly
from small import TINY, CutAt, PowerCut

PAIRS = [
    {"good": f"The {noun} is {place}.", "bad": f"The {noun} are {place}.", "kind": "number" if i % 3 else "other"}
    for i, (noun, place) in enumerate(
        (noun, place) for noun in ("cat", "dog", "fox", "hen") for place in ("in", "up", "on")
    )
]


@pytest.fixture
def suite(tmp_path) -> Path:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    path = tmp_path / "pairs.toml"
    path.write_text(
        'name = "pairs"\nmethod = "pairs"\nfiles = ["pairs.jsonl"]\ngood = "{good}"\nbad = "{bad}"\nsubset = "{kind}"\n'
    )
    return path


def test_suites_during_training_change_no_bit(corpus, suite, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.0)  # the run is shorter than that
    asked = ["every.suite=2", f"suite.names={json.dumps([str(suite)])}", "suite.share=0.9"]
    isoflop.pretrain([str(corpus)], "12steps", tmp_path / "plain", assignments=TINY, quiet=True)
    isoflop.pretrain([str(corpus)], "12steps", tmp_path / "scored", assignments=[*TINY, *asked], quiet=True)
    plain, scored = (checkpoint.read(tmp_path / run).weights for run in ("plain", "scored"))
    assert plain.keys() == scored.keys() and all(torch.equal(plain[name], scored[name]) for name in plain)

    run = read_run(tmp_path / "scored")
    assert run.suite_lines and not read_run(tmp_path / "plain").suite_lines
    for line in run.suite_lines:
        assert line.suite == "pairs" and line.metric == "likelihood" and line.chance == 0.5 and line.step % 2 == 0
        assert line.items == sum(line.subset_items.values()) <= len(PAIRS)
        assert line.spent <= 0.9 * run.result.seconds
    assert "Scores on suites" in write_report([tmp_path / "scored"]).read_text()
    assert "Scores on suites" not in write_report([tmp_path / "plain"]).read_text()


def test_a_run_with_a_suite_of_its_own_can_be_resumed_from_any_folder(corpus, suite, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.0)
    monkeypatch.chdir(suite.parent)
    asked = ["every.suite=2", f"suite.names={json.dumps([suite.name])}", "suite.share=0.9", "every.checkpoint=4"]
    cut = Listener(hooks=(CutAt(6),))
    with pytest.raises(PowerCut):
        pretrain([str(corpus)], "12steps", tmp_path / "run", assignments=[*TINY, *asked], listener=cut)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume(tmp_path / "run")
    assert read_run(tmp_path / "run").suite_lines[-1].step > 4


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def run_at(suite, monkeypatch, tmp_path):
    """A run's state whose seconds are given, with 100 steps a second, where each item takes 0.001 s to score."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def score(model, tokenizer, asked, runtime, group):
        clock.now += 0.001 * len(asked.items)
        return module.Scores(asked, {"likelihood": np.ones(len(asked.items))})

    monkeypatch.setattr(module, "score", score)
    monkeypatch.setattr(module, "GPT", object)
    folder = RunFolder(tmp_path)
    group = SimpleNamespace(first=True, broadcast=lambda value: value)
    config = override(RunConfig(), ["every.suite=1"])

    def state(seconds, step=100):
        return SimpleNamespace(
            config=config,
            folder=folder,
            layout=SimpleNamespace(group=group),
            model=object(),
            prepared=SimpleNamespace(tokenizer=None),
            runtime=None,
            seconds=seconds,
            aside_seconds=0.0,
            step=step,
            tokens=step,
            due=lambda every: True,
            averaged=nullcontext,
            may_be_cut_short=nullcontext,
        )

    return state


def test_suites_keep_to_their_share(run_at, suite, tmp_path):
    hook = Suites([ask(str(suite))], share=0.02)
    counts, last = [], 0
    for seconds in range(1, 60):
        hook.stepped(run_at(float(seconds), step=100 * seconds))
        assert hook.spent <= 0.02 * seconds
        lines = read_lines_of(tmp_path)
        counts += [lines[-1].items] if len(lines) > last else []
        last = len(lines)
    assert counts and all(count >= min(len(PAIRS), 2 * module.FEWEST) for count in counts)

    again = Suites([ask(str(suite))], share=0.02)  # a run that goes on remembers what was spent
    again.started(run_at(60.0))
    assert again.spent == pytest.approx(hook.spent, abs=0.01) or again.spent > 0


def read_lines_of(folder):
    from isoflop.records.logs import SuiteLine

    return RunFolder(folder).lines("suites", SuiteLine)


def test_a_run_of_seconds_spends_no_more_than_its_share(run_at, suite, tmp_path, monkeypatch):
    """However early it ends, and if the first pass takes fifty times as long as later ones."""
    hook, scored = Suites([ask(str(suite))], share=0.02), module.score

    def slow_at_first(*how):
        module.time.now += 0 if hook.per_item else 0.04
        return scored(*how)

    monkeypatch.setattr(module, "score", slow_at_first)
    for step in range(1, 1500):
        hook.stepped(run_at(step / 100, step=step))
        assert hook.spent <= 0.02 * step / 100
    assert hook.spent > 0 and read_lines_of(tmp_path)


def test_nothing_is_scored_before_there_is_time(run_at, suite, tmp_path):
    hook = Suites([ask(str(suite))], share=0.02)
    hook.stepped(run_at(1.0, step=1))  # 0.02 s, and a step takes a second
    assert hook.spent == 0 and not read_lines_of(tmp_path)


def test_every_prefix_of_the_items_is_balanced_over_subsets(suite):
    asked = shuffle_evenly(ask(str(suite)), seed=0)
    assert sorted(item.number for item in asked.items) == list(range(1, len(PAIRS) + 1))
    for count in range(2, 9):
        there = [len(rows) for rows in first_items(asked, count).subsets.values()]
        assert max(there) - min(there) <= 1
    assert asked.items == shuffle_evenly(ask(str(suite)), seed=0).items != ask(str(suite)).items


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["every.suite=5"], "--set suite.items="),
        (["every.suite=5", 'suite.names=["blimb"]'], "did you mean blimp"),
        (["every.suite=5", "task=seq2seq"], "models that continue a text"),
        (["suite.share=0"], "suite.share = 0 is not between 0 and 1"),
        (["every.suite=-1"], "every.suite = -1 is too small"),
    ],
)
def test_a_suite_that_cannot_be_scored_is_refused_before_the_run(assignments, message):
    with pytest.raises(UserError, match=message):
        make_suites(override(RunConfig(), assignments))
    assert make_suites(RunConfig()) == []


def test_a_suite_that_is_named_twice_is_refused(suite):
    names = f"suite.names={json.dumps([str(suite)] * 2)}"
    with pytest.raises(UserError, match=r"suite\.names = .* has \w+ twice"):
        make_suites(override(RunConfig(), ["every.suite=5", names]))
