"""Study: are forecasts right on texts that no fit has seen? Its constants are in bench/forecast.json.

    python bench/forecast_corpora.py FOLDER                   fetch its corpora, once
    python bench/forecast.py FOLDER                           all runs that are missing, about four hours
    python bench/forecast.py FOLDER --most 90 --corpora 3     only the shortest runs, on the first corpora
    python bench/forecast.py --score                          the results, by budget

Each run is a JSON line in bench/results/forecast.jsonl, written as it ends, with its forecast, which was in the ledger
before the first step. Started again, the command continues with the missing runs. Lines of another study (other
constants, another law, another version of the forecasting code) do not count. Budgets are in seconds: leave the machine
to this study.

Each run is forecast in three ways: as the plan does; by the surface through the prior's runs that plans used before
there were pilots; and by the nearest of these runs, in compute and n-gram bits per byte. The intervals of the latter
two have the width that they need on the prior's own corpora, left out one at a time.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from isoflop.budget import parse_budget
from isoflop.files import home
from isoflop.job import pretrain
from isoflop.job.ledger import LEDGER, source_sha256
from isoflop.plan.ledger import Scored, coverage
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect, table
from isoflop.plan.repetition import excess
from isoflop.records import Expectation, read_ledger, read_run
from isoflop.records.plan import Interval
from isoflop.trainer.recovery import Diverged
from record import commit

STUDY = Path(__file__).parent / "forecast.json"
RESULTS = Path(__file__).parent / "results" / "forecast.jsonl"
ROOT = Path(__file__).parents[1]
FORECASTS = ("plan/*.py", "plan/prior.json", "data/excerpt.py", "job/pilots.py")  # on which a forecast depends

Way = Callable[[dict[str, Any]], Expectation]


def identity() -> str:
    """A hash of the constants and of everything that forecasts are made from; only lines with the same one count."""
    top = ROOT / "isoflop"
    files = sorted(path for pattern in FORECASTS for path in top.glob(pattern))
    found = hashlib.sha256(STUDY.read_bytes())
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def todo(study: dict[str, Any]) -> list[tuple[str, str]]:
    """(budget, corpus) of every run, the shortest first."""
    names = [corpus["name"] for corpus in study["corpora"]]
    return [(runs["budget"], name) for runs in study["runs"] for name in names[: runs["corpora"]]]


def read_lines() -> list[dict[str, Any]]:
    """The lines of this study."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [line for line in lines if line["study"] == identity()]


@contextlib.contextmanager
def own_home() -> Iterator[None]:
    """A context in which prepared data, pilots and the ledger have their own folder. Cached timings of the machine stay
    in their usual place."""
    before = os.environ.get("ISOFLOP_HOME")
    timed = {name: (home() / name) for name in ("peak.json", "timings.json", "dtype.json")}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in timed.items():
            if path.is_file():
                (Path(folder) / name).write_bytes(path.read_bytes())
        os.environ["ISOFLOP_HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["ISOFLOP_HOME"]
            else:
                os.environ["ISOFLOP_HOME"] = before


def one_run(name: str, source: Path, budget: str, seed: int) -> dict[str, Any]:
    """Train once, as a user would. Returns the line with the forecast and the outcome."""
    with own_home(), tempfile.TemporaryDirectory() as folder:
        began, out = time.time(), Path(folder) / "run"
        diverged = False
        try:
            pretrain([f"{name}={source}"], budget, out, assignments=[f"seed={seed}"])
        except Diverged:
            diverged = True
        run = read_run(out)
        ledger = read_ledger(home() / LEDGER)
    forecast = ledger.forecasts[run.plan.forecast or ""]
    first_step = next((event.time for event in run.events if event.time), None)  # None: planned again
    return {
        "study": identity(),
        "commit": commit(ROOT),
        "code": source_sha256()[:16],
        "corpus": name,
        "budget": budget,
        "seconds": parse_budget(budget).amount,
        "fingerprint": run.data.fingerprint,
        "parameters": run.plan.parameters,
        "tokens": run.plan.tokens,
        "flops": run.plan.flops,
        "unique_tokens": run.plan.unique_tokens,
        "ngram": run.plan.predictability.ngram,
        "lzma": run.plan.predictability.lzma,
        "pilots": [{"flops": one.flops, "bits_per_byte": one.bits_per_byte} for one in run.plan.pilots or ()],
        "on_record": forecast.time,
        "first_step": first_step,
        "forecasts": len(ledger.forecasts),
        "expected": forecast.expected.to_dict(),
        "reached": None if diverged else run.result.heldout.bits_per_byte,
        "wall_seconds": round(time.time() - began, 1),
        "phases": run.result.phases,
    }


# Other ways of forecasting


def expectation(centre: float, deviation: float, freedom: int) -> Expectation:
    halves = {level: float(stats.t.ppf(0.5 + level / 2, freedom)) * deviation for level in (0.5, 0.8, 0.9)}
    intervals = tuple(
        Interval(level=level, low=math.exp(centre - half), high=math.exp(centre + half))
        for level, half in halves.items()
    )
    return Expectation(bits_per_byte=math.exp(centre), intervals=intervals)


def left_out(guess: Callable[[list[dict[str, Any]], dict[str, Any]], float]) -> tuple[float, int]:
    """The standard deviation of a way's errors on corpora that were left out, all corpora weighing alike."""
    runs, squares = table()["runs"], []
    corpora = sorted({run["corpus"] for run in runs})
    for name in corpora:
        others = [run for run in runs if run["corpus"] != name]
        off = [math.log(run["bits_per_byte"]) - guess(others, run) for run in runs if run["corpus"] == name]
        squares.append(sum(one**2 for one in off) / len(off))
    return math.sqrt(sum(squares) / len(squares)), len(corpora)


def nearest(runs: list[dict[str, Any]], target: dict[str, Any]) -> float:
    """log(bits per byte) of the run that is nearest in compute and in n-gram bits per byte. A factor of 10 in compute
    counts as much as 10 % of the n-gram bits, as their effects on the loss are about equal."""

    def distance(run: dict[str, Any]) -> float:
        compute = math.log10(run["flops"] / target["flops"])
        return math.hypot(compute, 10 * math.log(run["ngram"] / target["ngram"]))

    return math.log(min(runs, key=distance)["bits_per_byte"])


def surface(runs: list[dict[str, Any]], target: dict[str, Any]) -> float:
    """log(bits per byte) = a + b log(n-gram) + (c + d log(LZMA)) log(C / 2e12), minus the excess over the balanced
    run on fresh text, all corpora weighing alike: the prior of earlier versions, before there were pilots."""

    def features(run: dict[str, Any]) -> list[float]:
        compute = math.log(run["flops"] / 2e12)
        return [1.0, math.log(run["ngram"]), compute, math.log(run["lzma"]) * compute]

    rows, values = [], []
    for run in runs:
        weight = 1 / math.sqrt(sum(other["corpus"] == run["corpus"] for other in runs))
        floor = min(0.6, 0.5 * run["bits_per_byte"])
        off = excess(run["parameters"], run["tokens"], run["unique_tokens"])
        rows.append([weight * value for value in features(run)])
        values.append(weight * math.log(floor + (run["bits_per_byte"] - floor) / off))
    coefficients = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    balanced = math.exp(float(coefficients @ np.array(features(target))))
    floor = min(0.6, 0.5 * balanced)
    return math.log(
        floor + (balanced - floor) * excess(target["parameters"], target["tokens"], target["unique_tokens"])
    )


def ways() -> dict[str, Way]:
    """The three ways to forecast a run, by name."""
    found: dict[str, Way] = {
        "the plan": lambda line: Expectation.read(line["expected"]),
        "the text alone": lambda line: expect(
            line["parameters"], line["tokens"], line["unique_tokens"], Predictability(line["ngram"], line["lzma"])
        ),
    }
    for title, guess in {"the surface": surface, "the nearest run": nearest}.items():
        deviation, corpora = left_out(guess)
        found[title] = lambda line, guess=guess, deviation=deviation, corpora=corpora: expectation(
            guess(table()["runs"], line), deviation, corpora - 1
        )
    return found


# Results


def scored(lines: Sequence[dict[str, Any]], way: Way) -> list[Scored]:
    return [
        Scored(line["corpus"], line["corpus"], line["fingerprint"], line["flops"], 0, way(line), line["reached"])
        for line in lines
    ]


def over_corpora(judged: Sequence[Scored], level: float, samples: int, seed: int) -> tuple[float, float]:
    """The 90 % interval of the coverage, by a bootstrap over corpora."""
    names = sorted({one.corpus for one in judged})
    held = {name: [bool(one.inside(level)) for one in judged if one.corpus == name] for name in names}
    generator = np.random.default_rng(seed)
    shares = []
    for _ in range(samples):
        drawn = [inside for name in generator.choice(names, len(names)) for inside in held[str(name)]]
        shares.append(sum(drawn) / len(drawn))
    low, high = np.quantile(shares, (0.05, 0.95))
    return float(low), float(high)


def show(study: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """Print a table by budget, and one by way of forecasting."""
    if not lines:
        print("no run of this study is on record")
        return
    total = len(todo(study))
    print(f"{len(lines)} of {total} runs, {len({line['corpus'] for line in lines})} corpora, study {identity()}")
    late = [line for line in lines if line["first_step"] and line["on_record"] > line["first_step"]]
    print(
        f"forecasts that were on record after the first step: {len(late)}; diverged: "
        f"{sum(line['reached'] is None for line in lines)}"
    )

    print(
        f"\n{'budget':<12}{'runs':>5}{'error':>8}{'bias':>8}{'+-80 %':>8}"
        + "".join(f"{f'{level:.0%}':>18}" for level in study["levels"])
    )
    groups = {runs["budget"]: [line for line in lines if line["budget"] == runs["budget"]] for runs in study["runs"]}
    groups |= {
        "below 3 m": [line for line in lines if line["seconds"] < 180],
        "from 3 m on": [line for line in lines if line["seconds"] >= 180],
        "all": lines,
    }
    way = ways()
    for title, some in groups.items():
        judged = scored(some, way["the plan"])
        errors = [one.error for one in judged if one.error is not None]
        middle = coverage(judged, 0.8)
        if not errors or middle is None or middle.width is None:
            continue
        shares = ""
        for level in study["levels"]:
            found = coverage(judged, level)
            low, high = over_corpora(judged, level, study["bootstrap"], study["seed"])
            shares += f"{f'{found.share:.0%} ({low:.0%} to {high:.0%})' if found else '-':>18}"
        error, bias = sum(map(abs, errors)) / len(errors), sum(errors) / len(errors)
        print(f"{title:<12}{len(some):>5}{error:>8.1%}{bias:>+8.1%}{middle.width / 2:>8.1%}{shares}")

    print(f"\n{'forecast by':<18}{'error':>8}{'bias':>8}{'width':>8}{'score':>8}{'inside 80 %':>13}")
    for title, one_way in way.items():
        judged = scored(lines, one_way)
        errors = [one.error for one in judged if one.error is not None]
        found = coverage(judged, 0.8)
        if errors and found and found.score is not None and found.width is not None:
            error, bias = sum(map(abs, errors)) / len(errors), sum(errors) / len(errors)
            print(f"{title:<18}{error:>8.1%}{bias:>+8.1%}{found.width:>8.1%}{found.score:>8.1%}{found.share:>13.0%}")
    if len(lines) < total:
        print("\nthe study is not complete: these figures are no result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--most", type=float, default=math.inf, help="seconds of the longest budget to run")
    parser.add_argument("--corpora", type=int, default=0, help="number of corpora, the first ones; 0: all")
    parser.add_argument("--score", action="store_true", help="run nothing, print the results so far")
    given = parser.parse_args()
    study = json.loads(STUDY.read_text(encoding="utf-8"))
    if given.folder is None and not given.score:
        parser.error("name the folder of the corpora, or --score")
    names = [corpus["name"] for corpus in study["corpora"]][: given.corpora or None]
    for budget, name in [] if given.score else todo(study):
        done = {(line["budget"], line["corpus"]) for line in read_lines()}
        if (budget, name) in done or name not in names or parse_budget(budget).amount > given.most:
            continue
        if not (given.folder / name).is_dir():
            raise SystemExit(
                f"{given.folder / name} is not there: python bench/forecast_corpora.py {given.folder} {name}"
            )
        line = one_run(name, given.folder / name, budget, study["seed"])
        with RESULTS.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
            log.flush()
            os.fsync(log.fileno())
        print(
            f"{name} {budget}: expected {line['expected']['bits_per_byte']:.3f}, reached {line['reached']}", flush=True
        )
    show(study, read_lines())


if __name__ == "__main__":
    main()
