"""Advice for other machines: a calculation that has to be consistent."""

import itertools
import json
import math
from dataclasses import replace

import pytest

from isoflop import cli
from isoflop.budget import parse_budget
from isoflop.errors import UserError
from isoflop.model.count import build_on_meta, count, palm
from isoflop.model.presets import modern
from isoflop.plan.cluster.advise import (
    FEWEST_STEPS,
    SHARE,
    Job,
    advise,
    counted,
    interval,
    ladder,
    options,
    shape_of,
)
from isoflop.plan.cluster.machines import CLUSTERS, parse_machine
from isoflop.plan.law.forms import PUBLISHED
from isoflop.plan.law.study import read_counted

LAW = PUBLISHED["besiroglu2024"]
BASIS, COUNTS = read_counted("besiroglu2024")
JOB = Job(8, "h100", 6 * 3600.0, price=2.5)


def advised(job):
    return advise(job, BASIS, COUNTS, LAW)


@pytest.fixture(scope="module")
def one():
    return advised(JOB)


def test_the_shape_of_lowest_loss_is_chosen(one):
    found = list(options(JOB, BASIS, COUNTS, LAW))
    assert len(found) > 10 and one.loss.value == min(other.loss.value for other in found)
    assert found[0].loss.value > one.loss.value < found[-1].loss.value  # neither end of the ladder


def test_tokens_flops_and_dollars_follow_from_speed_and_time(one):
    assert one.tokens == pytest.approx(one.speed * JOB.seconds)
    assert one.job.dollars == pytest.approx(8 * 6 * 2.5)
    peak = 8 * CLUSTERS["h100"].peak
    assert 0.3 < one.utilisation <= SHARE and one.flops < one.utilisation * peak * JOB.seconds * 1.001
    assert one.row.held.total < CLUSTERS["h100"].memory
    assert one.batch == one.row.sequences * one.row.passes * 8 * one.shape.context
    assert one.tokens / one.batch > FEWEST_STEPS


def test_more_time_or_more_gpus_give_a_lower_loss(one):
    losses = [one.loss.value, *(advised(replace(JOB, seconds=f * JOB.seconds)).loss.value for f in (2, 4))]
    assert losses == sorted(losses, reverse=True)
    assert advised(replace(JOB, gpus=64)).loss.value < one.loss.value
    assert advised(replace(JOB, machine="a100")).loss.value > one.loss.value


def test_little_text_is_repeated_and_costs_loss(one):
    little = advised(replace(JOB, text_bytes=2e9))
    assert little.unique < little.tokens and little.loss.value > one.loss.value
    assert little.parameters <= one.parameters or little.vocabulary <= one.vocabulary
    assert one.unique == one.tokens


@pytest.mark.parametrize("layers, width", [(4, 256), (8, 512)])
def test_the_formulas_count_what_the_default_model_has(layers, width):
    config = modern(layers=layers, d_model=width, vocab_size=4096, context=512)
    built, shape = build_on_meta(config), shape_of(layers, width, 4096, 512)
    assert shape.parameters == pytest.approx(count(built).total, rel=0.002)
    assert shape.flops == pytest.approx(palm(built, 512), rel=0.002)
    assert counted(layers, width, 4096, "blocks") == pytest.approx(count(built).blocks, rel=0.002)


def test_the_ladder_grows():
    shapes = list(ladder())
    sizes = [12 * layers * width**2 for layers, width in shapes]
    assert sizes == sorted(sizes) and max(b / a for a, b in itertools.pairwise(sizes)) < 3


def test_the_interval_is_wider_far_from_the_runs_of_the_law():
    def half(n, d):
        found = interval(float(LAW.law.loss(n, d)), n, d, BASIS, LAW)
        assert found.low < found.value < found.high
        return (found.high - found.low) / found.value

    assert half(1e9, 2e10) < half(1e11, 2e12)


@pytest.mark.parametrize(
    "text, expected", [("8xh100", (8, "h100")), ("H200", (1, "h200")), ("64 x a100", (64, "a100"))]
)
def test_machines(text, expected):
    assert parse_machine(text) == expected


@pytest.mark.parametrize(
    "text", ["", "8", "8xh900", "0xh100", "12xh100", "-8xh100", "1e9xh100", "8x", "9" * 30 + "xh100"]
)
def test_invalid_machines_are_refused(text):
    with pytest.raises(UserError) as refused:
        parse_machine(text)
    message = str(refused.value)
    assert "\n" not in message and text in message and ("h200" in message or "nodes" in message)


def test_too_little_time_is_reported():
    with pytest.raises(UserError, match="give more time"):
        advised(replace(JOB, seconds=0.01))


def run(capsys, *words):
    code = cli.run(["plan", "advise", *words])
    return code, capsys.readouterr()


def test_the_command(capsys):
    code, shown = run(capsys, "--machine", "8xh100", "--budget", "72h", "--price", "2.5")
    assert code == 0 and "$1,440" in shown.out and "half" in shown.out and "90%" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "torchrun --nproc-per-node 8 -m isoflop train SOURCE --budget 72h" in shown.out


def test_the_command_as_json(capsys):
    code, shown = run(capsys, "--machine", "8xh100", "--budget", "$1440@20/h", "--json")
    found = json.loads(shown.out)
    assert code == 0 and found["seconds"] == 72 * 3600 and found["dollars"] == pytest.approx(1440)
    assert found["half"]["loss"]["value"] > found["loss"]["value"] > found["twice"]["loss"]["value"]


@pytest.mark.parametrize("machine, budget", [("1xh100", "1h"), ("512xb200", "30d"), ("128xa100", "7d")])
def test_it_fits_a_terminal_of_80_columns(capsys, machine, budget):
    code, shown = run(capsys, "--machine", machine, "--budget", budget, "--price", "2.49")
    assert code == 0 and max(map(len, shown.out.splitlines())) <= 80


def test_far_more_compute_than_the_text_is_worth_is_reported(capsys, tmp_path):
    (tmp_path / "small.txt").write_text("The lamp near the river holds letters.\n" * 5000)
    code, shown = run(capsys, str(tmp_path / "small.txt"), "--machine", "8xh100", "--budget", "2h")
    assert code == 0 and "find more text, or spend less" in " ".join(shown.out.split())


@pytest.mark.parametrize(
    "words, named",
    [
        (["--machine", "8xh100", "--budget", "1e21"], "1e21"),
        (["--machine", "8xh100", "--budget", "+1h"], "+1h"),
        (["--machine", "8xh1000", "--budget", "1h"], "8xh1000"),
        (["--machine", "8xh100", "--budget", "1h", "--price", "-1"], "-1"),
        (["--machine", "8xh100", "--budget", "1h", "--share", "1.5"], "1.5"),
        (["--machine", "8xh100", "--budget", "1h", "--law", "kaplan"], "kaplan"),
        (["nowhere.txt", "--machine", "8xh100", "--budget", "1h"], "nowhere.txt"),
    ],
)
def test_invalid_arguments_are_one_line(capsys, words, named):
    code, shown = run(capsys, *words)
    assert code == 2 and named in shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize(
    "text, words",
    [("$20@2.5/h", "8h ($20 at $2.50 per hour)"), ("8h", "8h"), ("1440usd@20/h", "72h ($1,440 at $20 per hour)")],
)
def test_a_budget_in_dollars_is_echoed(text, words):
    budget = parse_budget(text)
    assert budget.words() == words and math.isfinite(budget.amount)
    assert budget == parse_budget(str(budget))
