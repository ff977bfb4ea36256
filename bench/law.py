"""Tests of fitted scaling laws: coverage of their intervals, and errors on held-out budgets.

    python bench/law.py coverage [--draws 200]       coverage of 90 % intervals on known surfaces
    python bench/law.py tables FOLDER [--cuts 2]     published tables, with their largest budgets held out
    python bench/law.py time                         250 points, 1,000 bootstrap samples

`tables` reads tables of published studies. The largest budget of each is held out, then the two largest. Three
predictors use the rest: ours (the method chosen by holding out budgets within the rest), a Chinchilla fit converged by
plain L-BFGS from 18 starts (scaled objective, tight tolerances), and the rule D = 20 N, which gives a size and no loss.

    error     root mean square error of log loss over the held-out runs near the valley (within 10 % of the best run of
              at most the same compute), and over the best of them alone
    inside    the number of these runs inside our 90 % interval for one run
    regret    in the loss's unit, at the largest held-out budget for which the table has at least three sizes: the loss
              at the chosen N, interpolated over log N, minus the lowest loss there
"""

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize

from isoflop.plan.law.bootstrap import bootstrap
from isoflop.plan.law.fit import fit
from isoflop.plan.law.forms import Law
from isoflop.plan.law.points import Columns, Points, make_points, read_points
from isoflop.plan.law.predict import advised, run_loss
from isoflop.plan.law.rolling import NEAR, choose, excess, fits, thresholds
from isoflop.plan.law.study import basis_by, study

Array = npt.NDArray[np.float64]

DELTA = 1e-3
PORIAN = [
    ("base", "long", "kaplan", "standard"),
    ("base", "short", "kaplan", "standard"),
    ("base", "short", "chinchilla", "standard"),
    ("tuned", "short", "const", "standard"),
]
GADRE = ["openlm", "c4_val", "paloma_c4_en", "paloma_ptb", "val_de-en_100", "paloma_falcon-refinedweb"]
OLMO = ["c4_en", "dolma_books", "dolma_common-crawl", "dolma_pes2o", "dolma_reddit", "dolma_stack", "dolma_wiki"]
OLMO += ["ice", "m2d2_s2orc", "pile", "wikitext_103"]


def tables(folder: Path) -> Iterator[tuple[str, str, Points]]:
    """(study, table, points) of every table."""
    for hparams, warmup, decay, counted in PORIAN:
        where = (f"hparams={hparams}", f"warmup={warmup}", f"decay={decay}", f"param_count={counted}")
        columns = Columns("N", "D", "loss", "flops", where)
        yield "Porian 2024", f"{hparams} {warmup} {decay}", read_points(folder / "porian2024_owt2.csv", columns)
    for name in GADRE:
        columns = Columns("N", "D", f"loss_{name}")
        yield "Gadre 2024", name, read_points(folder / "gadre2024_c4_small.csv", columns)
    columns = Columns("params_active_precise", "tokens", "final_loss")
    yield "Gemstones", "cooldown", read_points(folder / "gemstones_cooldown_small.csv", columns)
    for name in OLMO:
        yield "OLMo ladder", name, read_points(folder / "olmo_ladder_small.csv", Columns("N", "D", name))
    with (folder / "datablations_one_epoch.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if float(row["U"]) >= float(row["D"])]
    values = [[float(row[name]) for row in rows] for name in ("N", "D", "loss")]
    yield "Muennighoff 2023", "one epoch", make_points(*values)


def plain_lbfgs(points: Points) -> Law:
    """Hoffmann's approach 3 as printed: Huber on log loss, the log-sum-exp form, L-BFGS from a grid; converged."""
    log_n, log_d, target = np.log(points.n), np.log(points.d), np.log(points.loss)

    def objective(raw: Array) -> tuple[float, Array]:
        a, b, e, alpha, beta = raw
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(target, e)])
        total = np.logaddexp.reduce(terms)
        share = np.exp(terms - total)
        rest = total - target
        size = np.minimum(np.abs(rest), DELTA)
        pull = np.clip(rest, -DELTA, DELTA)
        slope = [pull @ share[0], pull @ share[1], pull @ share[2]]
        slope += [-pull @ (share[0] * log_n), -pull @ (share[1] * log_d)]
        return float((size * (np.abs(rest) - 0.5 * size)).sum() / DELTA**2), np.array(slope) / DELTA**2

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-8}
    ends = []
    for alpha in (0.2, 0.4, 0.7):
        for beta in (0.2, 0.4, 0.7):
            for e in (-0.5, 0.5):
                scale = np.log(0.3 * points.loss.mean())
                start = [scale + alpha * log_n.mean(), scale + beta * log_d.mean(), e, alpha, beta]
                ends.append(minimize(objective, np.array(start), jac=True, method="L-BFGS-B", options=options))
    a, b, e, alpha, beta = min(ends, key=lambda end: float(end.fun)).x
    return Law(math.exp(e), math.exp(a), math.exp(b), float(alpha), float(beta))


def valley_at(points: Points, flops: float) -> tuple[Callable[[float], float], float] | None:
    """The loss as a function of N at one budget, interpolated from a table, and its minimum; None if fewer than three
    sizes have runs at that budget or on both sides of it."""
    at: list[tuple[float, float]] = []
    for size in np.unique(points.n):
        own = points.select(points.n == size)
        x, first = np.unique(np.log(own.flops), return_index=True)
        order = np.log(flops)
        if x[0] - 0.02 <= order <= x[-1] + 0.02:
            at.append((math.log(size), float(np.exp(np.interp(order, x, np.log(own.loss[first]))))))
    if len(at) < 3:
        return None
    x, y = np.array(at).T
    curve = PchipInterpolator(x, y)
    least = float(curve(np.linspace(x[0], x[-1], 2000)).min())
    return (lambda n: float(curve(np.clip(np.log(n), x[0], x[-1])))), least


@dataclass(frozen=True)
class Held:
    """The results of one cut: errors and regrets of ours, the plain fit and D = 20 N, and coverage of our interval."""

    way: str
    decades: float
    runs: int
    inside: int
    errors: tuple[float, float]
    bests: tuple[float, float]
    regrets: tuple[float, float, float] | None


def hold_out(points: Points, kept: npt.NDArray[np.bool_], samples: int) -> Held:
    rest, near = points.select(kept), points.select(~kept & (excess(points) <= NEAR))
    way, _ = choose(rest)
    basis, plain = basis_by(way, rest, samples), plain_lbfgs(rest)
    laws = (basis.law, plain)
    missed = [np.log(near.loss) - np.log(law.loss(near.n, near.d)) for law in laws]
    intervals = [run_loss(basis, n, d) for n, d in zip(near.n, near.d, strict=True)]
    inside = sum(one.low <= loss <= one.high for one, loss in zip(intervals, near.loss, strict=True))
    best = int(np.argmin(near.loss))

    regrets = None
    for flops in sorted(set(points.flops[~kept]), reverse=True):
        if (read := valley_at(points, flops)) is not None:
            curve, least = read
            sizes = [advised(basis, flops), float(plain.n_star(flops)), float(basis.law.at_ratio(flops)[0])]
            ours, other, rule = (curve(n) - least for n in sizes)
            regrets = (ours, other, rule)
            break
    return Held(
        str(way),
        math.log10(near.flops.max() / rest.flops.max()),
        len(near),
        inside,
        tuple(float(np.sqrt((one**2).mean())) for one in missed),
        tuple(float(abs(one[best])) for one in missed),
        regrets,
    )


def show_tables(folder: Path, cuts: int, samples: int) -> None:
    by_study: dict[str, list[Held]] = {}
    head = "way | decades | runs | inside | error ours | plain | best run ours | plain | regret ours | plain | 20 N"
    print(f"| table | {head} |\n|{'---|' * 12}")
    for name, table, points in tables(folder):
        done = 0
        for threshold in thresholds(points):
            kept = points.flops < threshold * (1 - 1e-9)
            if done == cuts or kept.all() or kept.sum() < 0.4 * len(points) or not fits(points.select(kept), "free"):
                continue
            done += 1
            held = hold_out(points, kept, samples)
            by_study.setdefault(name, []).append(held)
            print(f"| {name}, {table} | {row(held)} |", flush=True)
    print("\nmeans of each study, then of the studies")
    means = [mean(helds) for helds in by_study.values()]
    for name, values in zip(by_study, means, strict=True):
        print(f"| {name} | {len(by_study[name])} | " + " | ".join(values_shown(values)) + " |")
    print("| all | | " + " | ".join(values_shown(list(np.nanmean(np.array(means), axis=0)))) + " |")


def row(one: Held) -> str:
    numbers = [f"{value:.2%}" for value in (one.errors[0], one.errors[1], one.bests[0], one.bests[1])]
    numbers += ["-"] * 3 if one.regrets is None else [f"{value:.4f}" for value in one.regrets]
    return " | ".join([one.way, f"{one.decades:.2f}", str(one.runs), str(one.inside), *numbers])


def mean(helds: list[Held]) -> list[float]:
    coverage = sum(one.inside for one in helds) / sum(one.runs for one in helds)
    errors = np.mean([[*one.errors, *one.bests] for one in helds], axis=0)
    known = [one.regrets for one in helds if one.regrets is not None]
    regrets = np.mean(known, axis=0) if known else np.full(3, np.nan)
    return [coverage, *errors, *regrets]


def values_shown(values: list[float]) -> list[str]:
    return [f"{value:.1%}" if i < 1 else f"{value:.2%}" if i < 5 else f"{value:.4f}" for i, value in enumerate(values)]


def known_surface(rng: np.random.Generator, budgets: int, sizes: int) -> tuple[Law, Points]:
    """A random law and its isoFLOP table with 0.5 % noise, budgets from 1e18 to 1e21, an eighth to eight times N*."""
    alpha, beta = rng.uniform(0.25, 0.45, size=2)
    terms = rng.uniform(0.1, 0.5, size=2)
    law = Law(rng.uniform(1.5, 2.2), terms[0] * 1e8**alpha, terms[1] * 2e9**beta, alpha, beta)
    flops = np.geomspace(1e18, 1e21, budgets)[:, None]
    n = law.n_star(flops) * np.geomspace(1 / 8, 8, sizes)
    d = flops / 6 / n
    return law, make_points(n, d, law.loss(n, d) * np.exp(0.005 * rng.standard_normal(n.shape)))


def show_coverage(draws: int, samples: int) -> None:
    """Print the coverage of 90 % intervals, by design and loss function."""
    asked: dict[str, Callable[[Law], object]] = {
        name: (lambda law, name=name: getattr(law, name)) for name in ("E", "A", "B", "alpha", "beta", "a")
    }
    for flops in (1e21, 1e22, 1e24):
        asked[f"N* {flops:.0e}"] = lambda law, flops=flops: law.n_star(flops)
        asked[f"D* {flops:.0e}"] = lambda law, flops=flops: law.d_star(flops)
        asked[f"L* {flops:.0e}"] = lambda law, flops=flops: law.loss_star(flops)
    for budgets, sizes in ((6, 7), (10, 25)):
        for words, delta in (("Huber", DELTA), ("squared", math.inf)):
            held = dict.fromkeys(asked, 0)
            for seed in range(draws):
                law, points = known_surface(np.random.default_rng(seed), budgets, sizes)
                drawn = bootstrap(fit(points, delta=delta), samples, seed)
                for name, of in asked.items():
                    interval = drawn.interval(of)
                    held[name] += bool(interval.low <= float(of(law)) <= interval.high)
            shown = ", ".join(f"{name} {count / draws:.1%}" for name, count in held.items())
            print(f"{budgets} budgets x {sizes} sizes, {words}, {draws} draws: {shown}", flush=True)


def show_time() -> None:
    _, points = known_surface(np.random.default_rng(1), 10, 25)
    started = time.perf_counter()
    found = study(points)
    seconds = time.perf_counter() - started
    print(f"{len(points)} points, {len(found.samples)} samples: all that `plan fit` does {seconds:.1f} s", end="")
    started = time.perf_counter()
    bootstrap(fit(points))
    print(f", of which the fit and its bootstrap {time.perf_counter() - started:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("coverage", "tables", "time"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--cuts", type=int, default=2)
    given = parser.parse_args()
    if given.what == "coverage":
        show_coverage(given.draws, given.samples)
    elif given.what == "time":
        show_time()
    elif given.folder is None:
        raise SystemExit("tables needs the folder of the tables")
    else:
        show_tables(given.folder, given.cuts, given.samples)


if __name__ == "__main__":
    main()
