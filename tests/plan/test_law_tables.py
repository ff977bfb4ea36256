"""Tables of runs: which are refused, and with which message; grouping and holding out budgets; published tables."""

import json
import math

import numpy as np
import pytest

from isoflop.cli.show_laws import show_needed, show_prediction, show_study
from isoflop.errors import UserError
from isoflop.plan.law.counting import Counts
from isoflop.plan.law.doubts import doubts
from isoflop.plan.law.fit import fit
from isoflop.plan.law.forms import PUBLISHED
from isoflop.plan.law.isoflop import approach_1, approach_2
from isoflop.plan.law.points import Columns, make_points, read_points
from isoflop.plan.law.predict import budget_for, predict
from isoflop.plan.law.rolling import NEAR, WAYS, Way, choose, excess, roll
from isoflop.plan.law.study import study, to_dict, to_text
from surfaces import isoflop_table, same_sizes_table

LAW = PUBLISHED["besiroglu2024"].law
COLUMNS = Columns("N", "D", "loss")

# Porian et al. 2024, OpenWebText2: hparams, warmup, decay, param_count, and the authors' exponent
PORIAN = [
    ("base", "long", "kaplan", "kaplan", 0.864),
    ("base", "long", "kaplan", "standard", 0.699),
    ("base", "short", "kaplan", "standard", 0.603),
    ("base", "short", "chinchilla", "standard", 0.574),
    ("tuned", "short", "const", "standard", 0.518),
]


def table_text(rows=8, **changed):
    """A table that can be fitted, with some cells of row 4 (the header is row 1) changed."""
    points = same_sizes_table(LAW, np.random.default_rng(0))
    lines = ["name,N,D,loss"]
    for i in range(rows):
        cells = {"N": points.n[5 * i], "D": points.d[5 * i], "loss": points.loss[5 * i]}
        if i == 2:
            cells |= changed
        lines.append(",".join(["run", *map(str, cells.values())]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table_text(loss="nan"), "row 4: loss is nan, not a positive number"),
        (table_text(loss="-1"), "row 4: loss is -1, not a positive number"),
        (table_text(loss="diverged"), "row 4: loss is 'diverged', not a number"),
        (table_text(N=""), "row 4: N is empty"),
        (table_text(D="0"), "row 4: D is 0, not a positive number"),
        (table_text(D="inf"), "row 4: D is inf, not a positive number"),
        (table_text(D="1,000"), "row 4"),
        (table_text(N="1e200"), "row 4: N is 1e200, outside 1e-30 to 1e+30; check the column's unit"),
        (table_text(loss="1e-200"), "row 4: loss is 1e-200, outside"),
        (table_text(rows=5), "5 points are too few"),
        (table_text(rows=0), "has no rows"),
        (table_text().replace("loss", "lose"), "no column 'loss': its columns are name, N, D, lose; did you mean lose"),
        (table_text().replace("name", "N"), "several columns named 'N'"),
        ("", "is empty"),
        ("\n\n", "is empty"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_points(path, COLUMNS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_points(tmp_path / "nothing.csv", COLUMNS)
    with pytest.raises(UserError, match="cannot be read"):
        read_points(tmp_path, COLUMNS)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00" * 9)
    with pytest.raises(UserError, match="not UTF-8"):
        read_points(tmp_path / "binary.csv", COLUMNS)


@pytest.mark.parametrize(("delimiter", "bom", "end"), [(",", "", "\n"), ("\t", "", "\n"), (";", "\ufeff", "\r\n")])
def test_tables_in_other_dialects(tmp_path, delimiter, bom, end):
    path = tmp_path / "points.csv"
    text = bom + table_text().replace(",", delimiter).replace("\n", end) + end
    path.write_text(text, encoding="utf-8", newline="")
    assert len(read_points(path, COLUMNS)) == 8


def test_rows_may_be_chosen(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(table_text().replace("run", "kept") + table_text(rows=3).partition("\n")[2], encoding="utf-8")
    assert len(read_points(path, Columns("N", "D", "loss", where=("name=kept",)))) == 8
    with pytest.raises(UserError, match="no rows with name=other"):
        read_points(path, Columns("N", "D", "loss", where=("name=other",)))
    with pytest.raises(UserError, match="is not COLUMN=VALUE"):
        read_points(path, Columns("N", "D", "loss", where=("kept",)))


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_one_ray_is_refused(power):
    n = np.geomspace(1e7, 1e9, 9)
    d = 20 * n**power
    with pytest.raises(UserError, match=r"one ray .* not identifiable"):
        make_points(n, d, LAW.loss(n, d))


def test_one_size_one_length_and_one_loss_are_refused():
    n, d = np.full(8, 1e8), np.geomspace(1e9, 1e11, 8)
    with pytest.raises(UserError, match="1 value of N"):
        make_points(n, d, LAW.loss(n, d))
    with pytest.raises(UserError, match="1 value of D"):
        make_points(d, n, LAW.loss(d, n))
    grid = np.repeat([1e7, 1e8, 1e9], 3)
    with pytest.raises(UserError, match="nothing to fit"):
        make_points(grid, np.tile([1e9, 1e10, 1e11], 3), np.full(9, 3.0))


def test_what_the_points_do_not_determine_is_warned_about():
    rng = np.random.default_rng(0)
    n = np.geomspace(1e7, 1e9, 12)
    d = 20 * n * np.exp(0.1 * rng.standard_normal(12))
    near_ray = make_points(n, d, LAW.loss(n, d) * np.exp(0.003 * rng.standard_normal(12)))
    warnings = doubts(fit(near_ray), fit(near_ray, delta=math.inf))
    assert any("nearly on one ray" in warning for warning in warnings)

    n = np.repeat([1e7, 1e8, 1e9], 4)
    d = n * np.tile([200, 500, 1000, 4000], 3)
    trained_long = make_points(n, d, LAW.loss(n, d))
    warnings = doubts(fit(trained_long), fit(trained_long, delta=math.inf))
    assert any("all models are smaller" in warning for warning in warnings)
    assert any("only 3 different N" in warning for warning in warnings)

    good = isoflop_table(LAW, rng)
    outlying = good.with_loss(np.where(np.arange(len(good)) == 17, good.loss * 1.2, good.loss))
    warnings = doubts(fit(outlying), fit(outlying, delta=math.inf))
    assert any("1 outlier beyond" in warning and f"{outlying.loss[17]:.4g}" in warning for warning in warnings)


def test_budgets_are_grouped():
    points = isoflop_table(LAW, np.random.default_rng(0), budgets=5, sizes=6)
    assert [len(group) for group in points.budgets()] == [6] * 5
    assert [points.flops[group].mean() for group in points.budgets()] == pytest.approx(np.geomspace(1e18, 1e21, 5))


def test_excess_needs_no_law():
    n, d = np.array([1e8, 1e8, 1e9]), np.array([1e9, 4e9, 4e8])
    points = isoflop_table(LAW, np.random.default_rng(0), noise=0.0)
    lowest = [group[np.argmin(points.loss[group])] for group in points.budgets()]
    assert excess(points)[lowest] == pytest.approx(0)
    assert (excess(points) >= 0).all()
    assert excess(points).max() > NEAR
    assert len(n) == len(d)


def test_the_largest_budgets_are_held_out():
    points = isoflop_table(LAW, np.random.default_rng(1), budgets=7)
    rolled = roll(points, samples=40)
    assert [round(math.log10(cut.held / cut.largest_kept), 2) for cut in rolled.cuts[:2]] == [0.5, 0.75]
    assert rolled.size < 0.015  # about the noise of 0.5 %
    assert all(abs(cut.error) < 4 * cut.doubt for cut in rolled.cuts)
    assert rolled.per_decade < 0.02


def test_another_method_is_chosen_only_if_it_predicts_better():
    points = isoflop_table(LAW, np.random.default_rng(1), budgets=7, sizes=9)
    assert choose(points)[0] == Way()

    bent = np.abs(np.log(points.n / LAW.n_star(points.flops)))
    far_off = points.with_loss(points.loss * np.exp(0.15 * np.maximum(0, bent - 0.8)))  # the law fails off the valley
    way, rolled = choose(far_off)
    sizes = {str(one.way): one.size for one in rolled}
    assert list(sizes) == [str(one) for one in WAYS]
    assert sizes[str(way)] < 0.5 * sizes[str(Way())]
    assert sizes[str(Way(near=True))] < 0.8 * sizes[str(Way())]


def test_approach_2_and_its_bias():
    rng = np.random.default_rng(2)
    points = isoflop_table(LAW, rng, budgets=8, sizes=9, noise=0.001)
    found = approach_2(points, LAW)
    assert found.a == pytest.approx(LAW.a, abs=0.02)
    assert abs(found.bias) < 0.01
    assert sum(valley.inside for valley in found.valleys) >= 7

    # Sizes off-centre by more at larger budgets: biased without any noise, and by as much as is stated.
    flops = np.geomspace(1e18, 1e21, 6)[:, None]
    law = PUBLISHED["hoffmann2022"].law
    n = law.n_star(flops) * np.geomspace(1 / 40, 4, 6) * (flops / 1e18) ** 0.15
    crooked = make_points(n, flops / 6 / n, law.loss(n, flops / 6 / n))
    found = approach_2(crooked, law, near=5)
    assert found.a - law.a == pytest.approx(found.bias)
    assert abs(found.bias) > 0.001


def test_approach_1():
    n = np.repeat(np.geomspace(1e7, 3e9, 12), 12).reshape(12, 12)
    d = n * np.geomspace(1, 400, 12)
    found = approach_1(make_points(n, d, LAW.loss(n, d)))
    assert found.a == pytest.approx(LAW.a, abs=0.04)
    assert approach_1(isoflop_table(LAW, np.random.default_rng(0))) is None  # one length per size


@pytest.mark.parametrize("step", range(5))
def test_porians_five_steps(scaling_data, step):
    *settings, published = PORIAN[step]
    names = ("hparams", "warmup", "decay", "param_count")
    where = tuple(f"{name}={value}" for name, value in zip(names, settings, strict=True))
    counts = Counts("blocks" if settings[3] == "kaplan" else "matmul", "table")
    points = read_points(scaling_data / "porian2024_owt2.csv", Columns("N", "D", "loss", "flops", where), counts)
    assert approach_2(points).a == pytest.approx(published, abs=0.03)


def test_c4s_one_epoch_points(scaling_data):
    """E 1.911, A 453, B 5,405, alpha 0.339, beta 0.387, a 0.533 over the 41 runs that repeat nothing."""
    rows = (scaling_data / "datablations_one_epoch.csv").read_text().splitlines()[1:]
    cells = np.array([[float(cell) for cell in row.split(",")[1:5]] for row in rows])
    fresh = cells[cells[:, 2] >= cells[:, 1]]
    assert len(fresh) == 41
    law = fit(make_points(fresh[:, 0], fresh[:, 1], fresh[:, 3])).law
    assert (law.E, law.A, law.B, law.alpha, law.beta, law.a) == pytest.approx(
        (1.911, 453, 5405, 0.339, 0.387, 0.533), rel=0.003
    )


def odd_tables():
    """Tables on which a law is a bad idea, by name: each N, D and loss, and FLOPs or none."""
    rng = np.random.default_rng(0)
    n, d = np.repeat(np.geomspace(1e6, 1e9, 5), 4), np.tile(np.geomspace(1e8, 1e11, 4), 5)
    loss = LAW.loss(n, d)
    few = np.array([0, 1, 6, 7, 13, 14])
    return {
        "six runs": (n[few], d[few], loss[few], None),
        "six noisy runs": (n[few], d[few], loss[few] * np.exp(0.3 * rng.standard_normal(6)), None),
        "the largest run diverged": (n, d, np.where(np.arange(20) == 19, 5 * loss, loss), None),
        "losses that rise": (n, d, 1 + 0.1 * np.log(n * d), None),
        "nothing but noise": (n, d, np.exp(rng.standard_normal(20)), None),
        "every run three times": (np.tile(n, 3), np.tile(d, 3), np.tile(loss, 3), None),
        "no noise": (n, d, loss, None),
        "in billions": (n / 1e9, d / 1e9, loss, None),
        "FLOPs with the head": (n, d, loss, 6 * (n + 3e5) * d),
        "FLOPs of other runs": (n, d, loss, np.exp(rng.normal(40, 5, 20))),
    }


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", odd_tables())
def test_unusual_tables_are_fitted_or_refused(name, capsys):
    points = make_points(*odd_tables()[name])
    found = study(points, samples=30)
    show_study(found, "points.csv", None)
    stored = json.loads(to_text(to_dict(found)))
    assert stored["points_used"] == len(points)
    for flops in (1e-5, float(points.flops.max()) * 10, 1e40):
        show_prediction(predict(found.basis, flops), found.basis)
    for loss in (0.9 * points.loss.min(), float(np.median(points.loss)), 100.0):
        try:
            show_needed(budget_for(found.basis, loss), found.basis)
        except UserError as error:
            assert "\n" not in str(error)
    assert "nan" not in capsys.readouterr().out
