"""`isoflop plan fit`, `predict` and `compare` from the command line."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.cli import run
from isoflop.cli.show_laws import count
from isoflop.plan.law.forms import PUBLISHED
from isoflop.plan.law.points import Points
from isoflop.plan.law.predict import budget_for, predict
from isoflop.plan.law.study import read_basis
from surfaces import isoflop_table

LAW = PUBLISHED["besiroglu2024"].law


def write(points: Points, path) -> None:
    rows = zip(points.n, points.d, points.loss, points.flops, strict=True)
    path.write_text("n,d,l,c\n" + "".join(",".join(map(repr, map(float, row))) + "\n" for row in rows))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with a table of points and the fit of it."""
    folder = tmp_path_factory.mktemp("fitted")
    write(isoflop_table(LAW, np.random.default_rng(0)), folder / "points.csv")
    columns = ["--n", "n", "--d", "d", "--loss", "l", "--samples", "100"]
    assert run(["plan", "fit", str(folder / "points.csv"), *columns, "--out", str(folder / "fit.json")]) == 0
    return folder


@pytest.fixture
def table(fitted, tmp_path):
    return shutil.copy(fitted / "points.csv", tmp_path / "points.csv")


@pytest.fixture
def stored(fitted, table, tmp_path):
    return shutil.copy(fitted / "fit.json", tmp_path / "fit.json")


def test_fit_as_json(table, tmp_path, capsys):
    arguments = ["plan", "fit", str(table), "--n", "n", "--d", "d", "--loss", "l", "--flops", "c"]
    assert run([*arguments, "--samples", "100", "--counts", "total", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    for name in ("E", "A", "B", "alpha", "beta", "a"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
        assert found["standard_errors"][name] > 0
    assert found["a"] == pytest.approx(found["beta"] / (found["alpha"] + found["beta"]))
    assert found["points_used"] == 42
    assert found["huber_sum"] > 0
    assert found["convergence"]["reached"] is True
    assert found["counting"]["parameters"] == "total"
    assert found["approach_2"]["bias"] is not None

    # What was printed is what can be asked.
    (tmp_path / "saved.json").write_text(text)
    assert run(["plan", "predict", str(tmp_path / "saved.json"), "--budget", "1e22", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budgets"][0]["flops"] == 1e22


def test_terminal_output_fits_80_columns(table, stored, capsys):
    arguments = ["plan", "fit", str(table), "--n", "n", "--d", "d", "--loss", "l", "--samples", "100"]
    assert run(arguments) == 0
    assert run(["plan", "predict", str(stored), "--budget", "1e21", "1e25", "--loss", "2.3"]) == 0
    assert run(["plan", "predict", "hoffmann2022", "--budget", "5.88e23"]) == 0
    assert run(["plan", "compare", "175e9:300e9", "280e9:300e9", "70e9:1.4e12"]) == 0
    shown = capsys.readouterr().out
    paths = str(stored)
    assert all(len(line) <= 80 for line in shown.splitlines() if paths not in line), shown
    for words in ("90 % interval", "approach 2", "bias", "held out", "D = 20 N", "one run's noise", "loss 2.3 needs"):
        assert words in " ".join(shown.split())


def test_compare_shows_why_chinchilla_won(capsys):
    runs = ["gpt3-175b:300e9", "gopher-280b:300e9", "chinchilla-70b:1.4e12"]
    assert run(["plan", "compare", *runs]) == 0
    shown = capsys.readouterr().out
    assert "chinchilla-70b has the least loss, 1.973, through its tokens" in shown
    assert run(["plan", "compare", *runs, "--json"]) == 0
    losses = [round(one["loss"], 3) for one in json.loads(capsys.readouterr().out)["runs"]]
    assert losses == [2.008, 1.999, 1.973]


def test_predictions_are_consistent(stored):
    basis, _ = read_basis(str(stored))
    for flops in (1e19, 1e21, 1e23):
        one = predict(basis, flops)
        assert one.n.low < one.n.value < one.n.high
        assert one.n.value * one.d.value * 6 == pytest.approx(flops)
        assert one.loss.low <= one.law.low <= one.law.value <= one.law.high <= one.loss.high
        assert one.take_n == pytest.approx(one.n.value, rel=0.05)  # the table knows its valley
        assert 6 * one.take_n * one.take_d == pytest.approx(flops)
        needed = budget_for(basis, one.law.value)
        assert needed.flops.value == pytest.approx(flops, rel=1e-6)
        assert needed.flops.low < flops < needed.flops.high
        assert needed.rule_flops >= flops * (1 - 1e-6)
    wide, narrow = (predict(basis, flops).n for flops in (1e26, 1e20))
    assert wide.high / wide.low > narrow.high / narrow.low


def test_the_rule_weighs_more_if_the_table_leaves_the_size_open(stored):
    basis, _ = read_basis(str(stored))
    constants = basis.samples.constants.copy()
    constants[:, 1] *= np.exp(3 * np.random.default_rng(0).standard_normal(len(constants)))  # A is anyone's guess
    unsure = replace(
        basis, samples=replace(basis.samples, law=replace(basis.law, A=basis.law.A * 20), constants=constants)
    )
    one = predict(unsure, 1e21)
    assert one.rule_n < one.take_n < one.n.value
    assert abs(np.log(one.take_n / one.rule_n)) < abs(np.log(one.take_n / one.n.value))
    assert not one.gains


def test_no_gain_inside_the_noise_is_claimed(stored, capsys):
    """Besiroglu's optimum is 18 tokens per parameter there: 20 are as good."""
    assert run(["plan", "predict", str(stored), "--budget", "1e21"]) == 0
    assert "no gain claimed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan"], ""),
        (["plan", "predict", "FIT"], "needs --budget FLOPS or --loss LOSS"),
        (["plan", "predict", "FIT", "--budget", "3m"], "a law takes only FLOPs"),
        (["plan", "predict", "FIT", "--budget", "-1e21"], "not understood"),
        (["plan", "predict", "FIT", "--loss", "0.5"], "irreducible loss is"),
        (["plan", "predict", "FIT", "--loss", "nan"], "not a positive number"),
        (["plan", "predict", "nothing.json", "--budget", "1e21"], "nor a published law"),
        (["plan", "predict", "TABLE", "--budget", "1e21"], "not valid JSON"),
        (["plan", "fit", "TABLE", "--n", "n", "--d", "d", "--loss", "loss"], "no column 'loss'"),
        (["plan", "fit", "TABLE", "--n", "n", "--d", "d", "--loss", "l", "--counts", "all"], "not one of total"),
        (["plan", "fit", "TABLE", "--n", "n", "--d", "d", "--loss", "l", "--out", "FIT"], "exists"),
        (["plan", "fit", "TABLE", "--n", "n", "--d", "d", "--loss", "l", "--samples", "3"], "at least 20"),
        (["plan", "compare", "gopher-28b:300e9"], "did you mean gopher-280b"),
        (["plan", "compare", "gopher-280b"], "is not MODEL:TOKENS"),
        (["plan", "compare", "70e9:many"], "not a positive number of tokens"),
        (["plan", "compare", "0:1e9"], "neither a number of parameters nor a preset"),
        (["plan", "compare", "70e9:1e9", "--law", "kaplan"], "nor a published law"),
    ],
)
def test_bad_input_is_one_line(arguments, expected, table, stored, capsys):
    words = [{"FIT": str(stored), "TABLE": str(table)}.get(word, word) for word in arguments]
    try:
        code = run(words)
    except SystemExit as end:  # the parser's own
        code = end.code
    message = capsys.readouterr().err.strip()
    assert code == 2
    assert expected in message
    assert not expected or message.count("\n") == 0


@pytest.mark.parametrize("damage", ["draws", "constants", "cost", "counting", "prediction"])
def test_a_damaged_fit_is_refused(stored, damage, capsys):
    found = json.loads(stored.read_text())
    (found if damage in found else found["prediction"])[damage] = [1, 2]
    stored.write_text(json.dumps(found))
    assert run(["plan", "predict", str(stored), "--budget", "1e21"]) == 2
    assert "is damaged" in capsys.readouterr().err


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-3, 1e16))
def test_counts_are_short_and_right(value):
    shown = count(value)
    assert len(shown) <= 8
    units = {"T": 1e12, "B": 1e9, "M": 1e6, "k": 1e3}
    number = float(shown.rstrip("TBMk").replace(",", "")) * units.get(shown[-1], 1.0)
    assert number == pytest.approx(value, rel=0.006)


def test_fitting_loads_no_torch(table):
    import subprocess

    code = (
        "import sys; from isoflop.cli import run; "
        f"words = ['plan', 'fit', {str(table)!r}, '--n', 'n', '--d', 'd', '--loss', 'l', '--samples', '20', '--json']; "
        "code = run(words); "
        "sys.exit(code or ('torch' in sys.modules) * 3)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
