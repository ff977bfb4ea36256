"""Do the lab's tests keep their promises? Simulated studies whose truth is known, and studies re-paired from real runs.

    python bench/lab_stats.py simulate [--studies 20000] [--json]
    python bench/lab_stats.py pool RUNS.jsonl [--studies 20000] [--json]
    python bench/lab_stats.py runs --count 64 --out RUNS.jsonl [--tokens 3e5] [--workers 2]

`simulate`: studies of 6, 9 and 12 pairs, differences drawn from a normal and from a heavy-tailed distribution (t with
4 degrees of freedom), without an effect and with planted ones; the share of each verdict with its 95 % interval
(Clopper & Pearson). Without an effect a fixed-sample test at 0.05 has to reject in 5 % of them, one that is looked at
after every pair in 5 % at most; an effect for which `required_pairs` was asked has to be found with the power that was
asked for; and arms that differ by exactly the margin must be called equivalent in 5 % at most.

`runs` makes a pool of A/A runs (one order of the data for each pair, other first weights), `pool` re-pairs them at
random: each study draws pairs of runs that share the order of their data, and tosses a coin as to which is which.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as scipy_stats

from isoflop.lab import anytime, stats
from isoflop.lab.claim import Claim, Comparison, Setup
from isoflop.lab.store import Store
from isoflop.lab.study import Study
from isoflop.lab.workers import Workers
from record import record

ALPHA, POWER, EFFECT = 0.05, 0.8, 0.03
Draw = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda generator, n: generator.normal(size=n),
    "t with 4 degrees": lambda generator, n: generator.standard_t(4, size=n) / math.sqrt(2),  # of standard deviation 1
}


def share(hits: int, studies: int) -> dict[str, Any]:
    """A share with its Clopper-Pearson interval."""
    low = float(scipy_stats.beta.ppf(0.025, hits, studies - hits + 1)) if hits else 0.0
    high = float(scipy_stats.beta.ppf(0.975, hits + 1, studies - hits)) if hits < studies else 1.0
    return {"share": hits / studies, "low": low, "high": high, "studies": studies}


def rejects_at_any_time(d: np.ndarray) -> bool:
    """Whether somebody who looks after every pair ever rejects."""
    least = -math.log(ALPHA)
    return any(anytime.log_e_value(d[:k]) >= least for k in range(2, len(d) + 1))


def rejects_peeking(d: np.ndarray) -> bool:
    """What the same looks do with a fixed-sample t-test: the mistake that the anytime rule is for."""
    return any(stats.paired_t(d[:k]).p <= ALPHA for k in range(3, len(d) + 1))


TESTS: dict[str, Callable[[np.ndarray], bool]] = {
    "paired t": lambda d: stats.paired_t(d).p <= ALPHA,
    "sign-flip": lambda d: stats.sign_flip(d) <= ALPHA,
    "sign test": lambda d: stats.median_difference(d).p <= ALPHA,
    "anytime t, every look": rejects_at_any_time,
    "anytime sign": lambda d: any(anytime.median_sequence(d[:k]).p <= ALPHA for k in range(2, len(d) + 1)),
    "paired t, every look (wrong)": rejects_peeking,
}


def simulate(studies: int, sizes: Sequence[int] = (6, 9, 12), longest: int = 100) -> list[dict[str, Any]]:
    """Rows of (what, distribution, pairs, share of studies with its interval)."""
    rows = []
    for name, draw in DISTRIBUTIONS.items():
        for pairs in sizes:
            for test, rejects in TESTS.items():
                generator = np.random.default_rng(pairs)
                hits = sum(rejects(draw(generator, pairs)) for _ in range(studies))
                rows.append({"what": f"no effect: {test} rejects", "of": name, "pairs": pairs, **share(hits, studies)})
            generator = np.random.default_rng(pairs)
            hits = sum(stats.equivalence(1.0 + draw(generator, pairs), 1.0) <= ALPHA for _ in range(studies))
            rows.append({"what": "at the margin: equivalent", "of": name, "pairs": pairs, **share(hits, studies)})
            generator = np.random.default_rng(pairs)
            ends = [stats.bootstrap(draw(generator, pairs), ALPHA, 1000) for _ in range(max(1, studies // 20))]
            hits = sum(low <= 0.0 <= high for low, high in ends)
            said = {"what": "the bootstrap interval holds 0", "of": name, "pairs": pairs}
            rows.append({**said, **share(hits, max(1, studies // 20))})
        few = max(1, studies // 20)  # these are long
        generator = np.random.default_rng(longest)
        hits = sum(rejects_at_any_time(draw(generator, longest)) for _ in range(few))
        rows.append(
            {"what": "no effect: anytime t, every look, rejects", "of": name, "pairs": longest, **share(hits, few)}
        )
        rows += planted(draw, name, studies)
    return rows


def planted(draw: Draw, name: str, studies: int) -> list[dict[str, Any]]:
    """Effects for which as many pairs were asked as they need: found with the promised power?"""
    rows = []
    for sd in (0.011, 0.02, 0.03):
        for rule, needed, rejects in (
            ("paired t", stats.required_pairs(EFFECT, sd, ALPHA, POWER), TESTS["paired t"]),
            ("anytime t", anytime.required_pairs(EFFECT, sd, ALPHA, POWER), rejects_at_any_time),
        ):
            generator = np.random.default_rng(needed)
            hits = sum(rejects(EFFECT + sd * draw(generator, needed)) for _ in range(studies))
            what = f"effect {EFFECT} with noise {sd}: found by {rule}"
            rows.append({"what": what, "of": name, "pairs": needed, **share(hits, studies)})
    return rows


def pool_of(path: Path) -> list[tuple[float, float]]:
    """Pairs of losses of runs that share the order of their data."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_order: dict[int, list[float]] = {}
    for row in rows:
        by_order.setdefault(row["order"], []).append(row["measures"]["bits_per_byte"])
    return [(losses[0], losses[1]) for losses in by_order.values() if len(losses) == 2]


def repaired(
    pool: Sequence[tuple[float, float]], studies: int, sizes: Sequence[int] = (6, 9, 12)
) -> list[dict[str, Any]]:
    """Studies of A/A pairs drawn from a pool of real runs, which arm is which by a coin."""
    losses = np.array(pool)
    differences = losses[:, 0] - losses[:, 1]
    rows = []
    for pairs in (size for size in sizes if size <= len(differences)):
        for test, rejects in TESTS.items():
            generator, hits = np.random.default_rng(pairs), 0
            for _ in range(studies):
                drawn = generator.choice(differences, size=pairs, replace=False)
                hits += rejects(drawn * generator.choice((-1.0, 1.0), size=pairs))
            rows.append(
                {"what": f"A/A runs: {test} rejects", "of": "real runs", "pairs": pairs, **share(hits, studies)}
            )
    return rows


def make_runs(count: int, out: Path, tokens: float, workers: int, sources: Sequence[str]) -> None:
    """A pool: `count` runs, two for each order of the data."""
    setup = Setup(set=("model.layers=2", "model.d_model=48", "model.heads=1"), tokens=tokens, sources=tuple(sources))
    same = Comparison(measure="bits_per_byte", arm="a", against="a", expect="same", smallest=EFFECT)
    claim = Claim("A is as good as A.", "?", "the same", (same,), name="aa", setup=setup, arms={"a": {}})
    study = Study.of(claim, Store(out.parent / f"{out.stem}-lab"))
    study.choose()
    jobs = [study.job("a", order, seed=order + 5000 * again) for order in range(count // 2) for again in (0, 1)]

    def done(job: Any, measured: Any, seconds: float) -> None:
        line = {"order": job.order, "seed": job.config.seed, "measures": measured.measures, "seconds": seconds}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"order {job.order} seed {job.config.seed}: {measured.measures['bits_per_byte']:.4f}", flush=True)

    there = (
        {(row["order"], row["seed"]) for row in map(json.loads, out.read_text().splitlines())}
        if out.exists()
        else set()
    )
    with Workers(workers) as pool:
        pool.run(iter([job for job in jobs if (job.order, job.config.seed) not in there]), done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["simulate", "pool", "runs"])
    parser.add_argument("path", nargs="?", type=Path, help="RUNS.jsonl, for pool")
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("aa-runs.jsonl"))
    parser.add_argument("--tokens", type=float, default=3e5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sources", nargs="*", default=[])
    parser.add_argument("--json", action="store_true", help="record it in bench/results/")
    given = parser.parse_args()

    if given.command == "runs":
        make_runs(given.count, given.out, given.tokens, given.workers, given.sources)
        return
    if given.command == "pool":
        rows = repaired(pool_of(given.path), given.studies)
    else:
        rows = simulate(given.studies)
    for row in rows:
        said = f"{100 * row['share']:.2f} % ({100 * row['low']:.2f} to {100 * row['high']:.2f})"
        print(f"{row['of']:18} {row['pairs']:4} pairs  {row['what']:56} {said}")
    if given.json:
        record(f"lab-{given.command}", {"rows": rows, "alpha": ALPHA, "power": POWER})


if __name__ == "__main__":
    main()
