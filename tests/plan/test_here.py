"""Advice for the machine at hand: the plan of a dry run, what each choice rests on, and the shapes next to it."""

import json

import pytest

from isoflop.budget import parse_budget
from isoflop.cli.app import run as command
from isoflop.cli.show_here import verdict
from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.plan.asked import Asked
from isoflop.plan.here import advise_here, best
from isoflop.trainer import RunConfig
from small import write_texts

FIELDS = ("data.vocab_size=320", "data.workers=1", "model.context=64", "runtime.dtype=float32", "runtime.threads=1")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("here") / "texts", files=10))


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """No time for timing: which shape is fastest matters to none of these."""
    monkeypatch.setattr("isoflop.plan.trials.SHORTEST", 0.3)
    monkeypatch.setattr("isoflop.plan.trials.LONGEST", 0.3)


def advised(texts: str, budget: str = "60s", fields=FIELDS):
    return advise_here(
        parse_budget(budget),
        override(RunConfig(data=DataConfig(sources=(texts,))), fields),
        Asked.of(fields),
    )


def test_it_is_the_plan_with_the_shapes_next_to_it(texts):
    one = advised(texts)
    assert {point.name for point in one.points} == {
        "vocabulary",
        "shape",
        "parameters N",
        "tokens D",
        "text",
        "batch",
        "rates",
        "context",
    }
    assert all(point.source and point.doubt for point in one.points)
    said = {point.name: point for point in one.points}
    assert said["context"].source == "model.context set by you" and "Step Law" in said["batch"].source
    assert f"{one.advice.parameters:,}" == said["parameters N"].value

    # at equal FLOPs each shape reads what that many FLOPs are enough for, at equal seconds what its speed is
    for option in one.options:
        assert option.tokens_per_second > 0 and option.tokens == pytest.approx(
            0.95 * 60 * 0.97 * option.tokens_per_second
        )
        assert 6 * option.parameters * option.flops_tokens == pytest.approx(one.advice.flops, rel=0.01)
    counts = [option.parameters for option in one.options]
    assert counts == sorted(counts)
    least = min(option.expected for option in one.options)
    assert one.options[one.by_seconds].expected == least
    assert verdict(one)


def test_text_that_is_read_often_is_said(texts):
    said = {point.name: point for point in advised(texts, "1h").points}["text"]
    assert said.value.startswith("read ") and "data-constrained" in said.source


def test_the_best_is_by_what_is_expected_or_by_the_score():
    assert best([2.0, 1.5, 1.7], [1.0, 2.0, 3.0]) == 1
    assert best([None, 1.5, 1.7], [1.0, 2.0, 3.0]) == 0


def test_a_budget_that_no_clock_decides_is_refused(texts):
    with pytest.raises(UserError, match="is in flops"):
        advised(texts, "1e15")


def test_the_command_prints_it(texts, capsys):
    sets = [word for field in FIELDS for word in ("--set", field)]
    assert command(["plan", "advise", texts, "--budget", "60s", "--json", *sets]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choices"] and found["shapes"][found["best_at_equal_seconds"]]["tokens"] > 0
    assert command(["plan", "advise", texts, "--budget", "60s", *sets]) == 0
    shown = capsys.readouterr().out
    assert "doubt:" in shown and "equal seconds" in shown and "bits/byte" in shown


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--budget", "2h", "--price", "2.5"], "--price goes with --machine"),
        (["--budget", "2h", "--machine", "8xh100", "--set", "steps=3"], "--set does not go with --machine"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(arguments, said, capsys):
    assert command(["plan", "advise", *arguments]) == 2
    assert said in capsys.readouterr().err
