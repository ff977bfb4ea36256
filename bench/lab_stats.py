"""Do the lab's tests keep their promises? Simulated studies whose truth is known, and studies re-paired from real runs.

    python bench/lab_stats.py simulate [--studies 20000] [--json]
    python bench/lab_stats.py runs --out RUNS.jsonl [--count 64] [--per-order 4] [--tokens 3e5] [--workers 2]
    python bench/lab_stats.py pool RUNS.jsonl [--studies 20000] [--json]

Every row is the share of studies in which something happened, with its 95 % interval (Clopper & Pearson), next to the
promise: without an effect a fixed-sample test at 0.05 rejects in 5 % of them, one that is looked at after every pair in
5 % at most; an effect is found with the power that was asked for; arms that differ by exactly the margin are called
equivalent in 5 % at most.

`simulate` draws differences from a normal and from a heavy-tailed distribution (t with 4 degrees of freedom), without
an effect and with planted ones, and goes through whole studies: three A/A pairs, the number of pairs that follows from
them, the test.

`runs` makes a pool of A/A runs: for each of several orders of the data a few runs that differ in their first weights
alone. It can be stopped and started again: what is on record is not run again. `pool` re-pairs them: a study draws
orders, and for each two runs of it, of which one is called the arm. Its intervals are of the draws; the pool itself is
one sample of real noise. Effects are planted by adding a number to the arm's losses, as large as that many pairs
promise to find, and go through the lab's whole rule, as do their opposites.
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
from isoflop.lab.procedures.job import Job
from isoflop.lab.run import FEWEST
from isoflop.lab.store import Row, Store
from isoflop.lab.study import NOISE_PAIRS, Study
from isoflop.lab.verdict import EXIT_CODES, decide
from isoflop.lab.workers import Performed, Workers
from record import record

ALPHA, POWER, EFFECT = 0.05, 0.8, 0.03
SIZES = (6, 9, 12)
LONG = 100  # pairs of the studies that are looked at a hundred times
NOMINAL, AT_MOST, AT_LEAST, NO_PROMISE = f"{ALPHA:.0%}", f"at most {ALPHA:.0%}", f"at least {POWER:.0%}", ""
Draw = Callable[[np.random.Generator, int], np.ndarray]
Rows = list[dict[str, Any]]

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
    """What the same looks do with a fixed-sample t-test: what the anytime rule is for."""
    return any(stats.paired_t(d[:k]).p <= ALPHA for k in range(3, len(d) + 1))


TESTS: dict[str, Callable[[np.ndarray], bool]] = {
    "paired t": lambda d: stats.paired_t(d).p <= ALPHA,
    "sign-flip": lambda d: stats.sign_flip(d) <= ALPHA,
    "sign test": lambda d: stats.median_difference(d).p <= ALPHA,
    "anytime t, every look": rejects_at_any_time,
    "anytime sign": lambda d: any(anytime.median_sequence(d[:k]).p <= ALPHA for k in range(2, len(d) + 1)),
    "paired t, every look (wrong)": rejects_peeking,
}
PROMISES = {
    "paired t": NOMINAL,
    "sign-flip": NOMINAL,
    "sign test": AT_MOST,
    "anytime t, every look": AT_MOST,
    "anytime sign": AT_MOST,
    "paired t, every look (wrong)": NO_PROMISE,
}


def row(what: str, of: str, pairs: int, promise: str, hits: int, studies: int) -> dict[str, Any]:
    return {"what": what, "of": of, "pairs": pairs, "promise": promise, **share(hits, studies)}


def simulate(studies: int, sizes: Sequence[int] = SIZES, longest: int = LONG) -> Rows:
    """What the tests do with differences that are drawn."""
    rows, few = [], max(1, studies // 20)  # few: of what takes long
    for name, draw in DISTRIBUTIONS.items():
        for pairs in sizes:
            for test, rejects in TESTS.items():
                generator = np.random.default_rng(pairs)
                hits = sum(rejects(draw(generator, pairs)) for _ in range(studies))
                rows.append(row(f"no effect: {test} rejects", name, pairs, PROMISES[test], hits, studies))
            generator = np.random.default_rng(pairs)
            hits = sum(stats.equivalence(1.0 + draw(generator, pairs), 1.0) <= ALPHA for _ in range(studies))
            rows.append(row("at the margin: called equivalent", name, pairs, AT_MOST, hits, studies))
            generator = np.random.default_rng(pairs)
            ends = [stats.bootstrap(draw(generator, pairs), ALPHA, 1000) for _ in range(few)]
            hits = sum(low <= 0.0 <= high for low, high in ends)
            rows.append(row("the bootstrap interval holds the truth", name, pairs, f"{1 - ALPHA:.0%}", hits, few))
        generator = np.random.default_rng(longest)
        hits = sum(rejects_at_any_time(draw(generator, longest)) for _ in range(few))
        rows.append(row("no effect: anytime t, every look rejects", name, longest, AT_MOST, hits, few))
        rows += planted(draw, name, studies)
        rows += whole_studies(draw, name, few)
    return rows


def planted(draw: Draw, name: str, studies: int) -> Rows:
    """Effects for which as many pairs were asked as they need: found with the promised power?"""
    rows = []
    for sd in (0.011, 0.02, 0.03):
        for rule, needed, rejects in (
            ("paired t", stats.required_pairs(EFFECT, sd, ALPHA, POWER), TESTS["paired t"]),
            ("anytime t", anytime.required_pairs(EFFECT, sd, ALPHA, POWER), rejects_at_any_time),
        ):
            generator = np.random.default_rng(needed)
            hits = sum(rejects(EFFECT + sd * draw(generator, needed)) for _ in range(studies))
            rows.append(row(f"effect {EFFECT}, noise {sd}: found by {rule}", name, needed, AT_LEAST, hits, studies))
    return rows


def whole_studies(draw: Draw, name: str, studies: int) -> Rows:
    """The lab's whole procedure: the noise of three A/A pairs, the pairs that its upper limit asks for, the test. The
    number of pairs is the mean one."""
    rows = []
    for sd in (0.011, 0.03):
        for effect, promise in ((EFFECT, AT_LEAST), (0.0, NOMINAL)):
            generator, hits, used = np.random.default_rng(7), 0, 0
            for _ in range(studies):
                _, limit = stats.noise(sd * draw(generator, NOISE_PAIRS))
                pairs = max(FEWEST, stats.required_pairs(EFFECT, limit, ALPHA, POWER))
                hits += stats.paired_t(effect + sd * draw(generator, pairs)).p <= ALPHA
                used += pairs
            what = f"{f'effect {effect}' if effect else 'no effect'}, noise {sd} measured first: paired t rejects"
            rows.append(row(what, name, round(used / studies), promise, hits, studies))
    return rows


def pool_of(path: Path) -> np.ndarray:
    """Losses by order of the data and by first weights, shape (orders, runs of each)."""
    by_order: dict[int, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        by_order.setdefault(run["order"], []).append(run["measures"]["bits_per_byte"])
    most = max(map(len, by_order.values()))
    if most < 2:
        raise SystemExit(f"{path} has one run per order of the data; two runs that share it are a pair")
    return np.array([losses for losses in by_order.values() if len(losses) == most])


def re_paired(pool: np.ndarray, generator: np.random.Generator, pairs: int) -> np.ndarray:
    """Differences of a study: so many orders, and two runs of each, in an order by chance."""
    orders = generator.permutation(len(pool))[:pairs]
    two = generator.permuted(np.tile(np.arange(pool.shape[1]), (pairs, 1)), axis=1)[:, :2]
    return np.asarray(pool[orders, two[:, 0]] - pool[orders, two[:, 1]])


def noise_of(pool: np.ndarray) -> float:
    """The standard deviation of the difference of two runs that share the order of their data."""
    return math.sqrt(2 * float(pool.var(axis=1, ddof=1).mean()))


def repaired(pool: np.ndarray, studies: int, sizes: Sequence[int] = SIZES) -> Rows:
    """What the tests and the whole rule do with pairs of real runs."""
    rows, sd = [], noise_of(pool)
    for pairs in (size for size in sizes if size <= len(pool)):
        for test, rejects in TESTS.items():
            generator = np.random.default_rng(pairs)
            hits = sum(rejects(re_paired(pool, generator, pairs)) for _ in range(studies))
            rows.append(row(f"no effect: {test} rejects", "real runs", pairs, PROMISES[test], hits, studies))
        effect = stats.detectable(pairs, sd, ALPHA, POWER)
        for rule, rejects in (("paired t", TESTS["paired t"]), ("sign-flip", TESTS["sign-flip"])):
            generator = np.random.default_rng(pairs)
            hits = sum(rejects(effect + re_paired(pool, generator, pairs)) for _ in range(studies))
            what = f"the effect that so many pairs promise to find: found by {rule}"
            rows.append(row(what, "real runs", pairs, AT_LEAST if rule == "paired t" else NO_PROMISE, hits, studies))
        rows += ruled(pool, pairs, effect, max(1, studies // 20))
    return rows


def ruled(pool: np.ndarray, pairs: int, effect: float, studies: int) -> Rows:
    """The verdicts of the lab's whole rule on an effect, on its opposite, and on none; predicted is that the arm is
    lower."""
    claim = aa_claim(effect)
    rows = []
    for planted, what in ((-effect, "effect"), (effect, "its opposite"), (0.0, "no effect")):
        generator, counts = np.random.default_rng(pairs), dict.fromkeys(EXIT_CODES, 0)
        for _ in range(studies):
            differences = planted + re_paired(pool, generator, pairs)
            measured = {
                "b": {number: {"bits_per_byte": float(value)} for number, value in enumerate(differences)},
                "a": {number: {"bits_per_byte": 0.0} for number in range(pairs)},
            }
            counts[decide(claim, measured).verdict] += 1
        rows += [
            row(f"{what}: the verdict is {verdict}", "real runs", pairs, NO_PROMISE, hits, studies)
            for verdict, hits in counts.items()
        ]
    return rows


def aa_claim(smallest: float, setup: Setup | None = None) -> Claim:
    """That arm b is lower than arm a, which is the same."""
    lower = Comparison(measure="bits_per_byte", arm="b", against="a", expect="lower", smallest=smallest)
    arms = {"a": {}, "b": {}}
    return Claim("B is better than A.", "?", "Yes.", (lower,), name="aa", setup=setup or Setup(tokens=1.0), arms=arms)


def make_runs(count: int, per_order: int, out: Path, tokens: float, workers: int, sources: Sequence[str]) -> None:
    """A pool of `count` runs, `per_order` for each order of the data; those on record are not run again."""
    setup = Setup(set=("model.layers=2", "model.d_model=48", "model.heads=1"), tokens=tokens, sources=tuple(sources))
    store = Store(out.parent / f"{out.stem}-lab")
    study = Study.of(aa_claim(EFFECT, setup), store)
    study.choose()
    orders = range(count // per_order)
    jobs = [study.job("a", order, seed=order + 5000 * again) for order in orders for again in range(per_order)]

    def done(job: Job, performed: Performed) -> None:
        made = store.add(job, performed, "aa")
        loss = made.measures["bits_per_byte"]
        print(f"order {job.order} seed {job.config.seed}: {loss:.4f} bits per byte, {made.seconds:.0f} s", flush=True)

    with Workers(workers) as pool:
        pool.run(iter(study.missing(jobs)), done)
    lines = [json.dumps(line_of(job, made)) for job in jobs if (made := store.find(job))]
    out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{out}: {len(lines)} runs, noise {noise_of(pool_of(out)):.4f} bits per byte between two of one order")


def line_of(job: Job, made: Row) -> dict[str, Any]:
    return {"order": job.order, "seed": job.config.seed, "measures": made.measures, "seconds": made.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["simulate", "pool", "runs"])
    parser.add_argument("path", nargs="?", type=Path, help="RUNS.jsonl, for pool")
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--per-order", type=int, default=4, help="runs for each order of the data")
    parser.add_argument("--out", type=Path, default=Path("aa-runs.jsonl"))
    parser.add_argument("--tokens", type=float, default=3e5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sources", nargs="*", default=[])
    parser.add_argument("--json", action="store_true", help="record it in bench/results/")
    given = parser.parse_args()

    if given.command == "runs":
        make_runs(given.count, given.per_order, given.out, given.tokens, given.workers, given.sources)
        return
    result: dict[str, Any] = {"alpha": ALPHA, "power": POWER}
    if given.command == "pool":
        if given.path is None:
            parser.error("pool needs the file that `runs` wrote")
        pool = pool_of(given.path)
        result |= {"orders": len(pool), "per_order": pool.shape[1], "mean": float(pool.mean()), "noise": noise_of(pool)}
        result["rows"] = repaired(pool, given.studies)
    else:
        result["rows"] = simulate(given.studies)
    for one in result["rows"]:
        said = f"{100 * one['share']:.2f} % ({100 * one['low']:.2f} to {100 * one['high']:.2f})"
        print(f"{one['of']:18} {one['pairs']:4} pairs  {one['what']:70} {said:28} {one['promise']}")
    if given.json:
        record(f"lab_stats-{given.command}", result)


if __name__ == "__main__":
    main()
