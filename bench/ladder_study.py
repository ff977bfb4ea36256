"""Does the law of a ladder foresee larger runs, and is the size that it chooses the best one?

    python bench/ladder_study.py NAME=PATH [NAME=PATH ...] --out DIR             the ladders, then runs of 4 to 10 times
    python bench/ladder_study.py NAME=PATH --out DIR --sizes                     one target at other sizes, three seeds
    python bench/ladder_study.py --out DIR --show                                what is on record, as tables
    python bench/ladder_study.py NAME=PATH ... --out DIR --hours                 about how long what is missing takes

For each corpus a ladder is made (`isoflop ladder NAME=PATH --budget 20m`), then RUNS runs with 4 to 10 times the
compute of its largest run, each with `isoflop train --budget C`. What each reached is compared with the law's forecast,
with the prior's from the text alone, with the prior's given the ladder's largest run, and with what that run reached.
With `--sizes` the middle one of these budgets is also spent on models of about a quarter, half, twice and four times
the size that the law chose, with SEEDS seeds each.

One line per run in DIR/study.jsonl; the command goes on where it was stopped. NAME=stdlib is the default corpus.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from isoflop.job import Listener, pretrain, resume
from isoflop.ladder.begin import Ladder, Wanted
from isoflop.ladder.climb import climb
from isoflop.plan.advice import Advice
from isoflop.plan.hierarchy import Observation
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect
from isoflop.records import Run, read_lines, read_run
from isoflop.trainer.causal_lm import LADDER

RUNS = 5
FACTORS = tuple(4 * 2.5 ** (i / (RUNS - 1)) for i in range(RUNS))  # times the compute of the ladder's largest run
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the chosen N
SEEDS = (0, 1, 2)


def sources_of(name: str, path: str) -> tuple[str, ...]:
    return () if path == "stdlib" else (f"{name}={path}",)


def ladder_of(name: str, path: str, out: Path, budget: str) -> Ladder:
    """The ladder of a corpus, made or found complete."""
    target = f"{10 * minutes(budget):g}m"
    said = Listener(say=lambda line: print(f"{name}: {line}", flush=True))
    made = climb(Wanted(sources_of(name, path), budget, (target,), out / name / "ladder"), said)
    if made is None or made.law is None:
        raise SystemExit(f"{name}: no law yet; run the same command again")
    return made


def minutes(budget: str) -> float:
    return float(budget.removesuffix("m"))


def one_run(name: str, path: str, out: Path, flops: float, said: list[str]) -> Run:
    """A planned run, begun or gone on with."""
    folder = out / name / "runs" / "-".join([f"{flops:.3g}", *(text.partition("=")[2] for text in said)])
    if (folder / "result.json").is_file():
        return read_run(folder)
    if (folder / "config.json").is_file():
        resume(folder)
    else:
        assignments = [*said, "every.sample=0"]
        pretrain(sources_of(name, path), f"{flops:.6g}flop", folder, assignments=assignments, pilots=False)
    return read_run(folder)


def row_of(name: str, made: Ladder, run: Run, factor: float) -> dict[str, Any]:
    """A run next to what was forecast of it in four ways."""
    plan, law = run.plan, made.law
    assert law is not None and made.climbed is not None and plan.expected is not None
    text = Predictability(plan.predictability.ngram, plan.predictability.lzma)
    largest = max(made.climbed.used, key=lambda one: one.flops)
    rung = Observation(largest.parameters, largest.tokens, largest.unique_tokens, largest.bits_per_byte)
    size = (plan.parameters, plan.tokens, plan.unique_tokens)
    return {
        "what": "forecast",
        "corpus": name,
        "factor": factor,
        "parameters": plan.parameters,
        "tokens": plan.tokens,
        "flops": run.result.flops,
        "reached": run.result.heldout.bits_per_byte,
        "by": plan.kind,
        "law": plan.expected.bits_per_byte,
        "low": plan.expected.low,
        "high": plan.expected.high,
        "prior": expect(*size, text).bits_per_byte,
        "prior_and_rung": expect(*size, text, [rung]).bits_per_byte,
        "nearest_rung": largest.bits_per_byte,
        "ladder_seconds": sum(one.seconds or 0.0 for one in made.climbed.used),
        "seconds": run.result.seconds,
        "time": time.time(),
    }


def keep(out: Path, row: dict[str, Any]) -> None:
    with (out / "study.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def forecasts(name: str, path: str, out: Path, budget: str) -> None:
    made = ladder_of(name, path, out, budget)
    there = {(row["corpus"], round(row["factor"], 3)) for row in read_lines(out / "study.jsonl") if "factor" in row}
    for factor in FACTORS:
        if (name, round(factor, 3)) not in there:
            keep(out, row_of(name, made, one_run(name, path, out, factor * made.law.largest, []), factor))


def sizes(name: str, path: str, out: Path, budget: str) -> None:
    """One target at the chosen size and at others."""
    made = ladder_of(name, path, out, budget)
    flops = FACTORS[RUNS // 2] * made.law.largest
    chosen = pretrain(sources_of(name, path), f"{flops:.6g}flop", dry_run=True, pilots=False)
    assert isinstance(chosen, Advice)
    there = {(row["corpus"], row["size"], row["seed"]) for row in read_lines(out / "study.jsonl") if "size" in row}
    ids = chosen.config.model.vocab_size
    for size in SIZES:
        wanted = size * chosen.parameters
        layers, width = min(LADDER, key=lambda one: abs(math.log((12 * one[0] * one[1] ** 2 + ids * one[1]) / wanted)))
        for seed in SEEDS:
            if (name, size, seed) in there:
                continue
            said = [f"model.layers={layers}", f"model.d_model={width}", f"seed={seed}"]
            run = one_run(name, path, out, flops, said)
            about = {"what": "size", "corpus": name, "size": size, "seed": seed, "layers": layers, "d_model": width}
            reached = {"parameters": run.plan.parameters, "reached": run.result.heldout.bits_per_byte}
            keep(out, {**about, **reached, "flops": run.result.flops, "seconds": run.result.seconds})


def show(out: Path) -> None:
    """Errors by corpus and way, coverage of the intervals, and the sizes."""
    rows = read_lines(out / "study.jsonl")
    made = [row for row in rows if row["what"] == "forecast"]
    print("corpus            runs   law  prior  prior+rung  nearest rung   inside (90 %)")
    for name in dict.fromkeys(row["corpus"] for row in made):
        mine = [row for row in made if row["corpus"] == name]
        errors = [
            statistics.mean(abs(math.log(row["reached"] / row[way])) for row in mine)
            for way in ("law", "prior", "prior_and_rung", "nearest_rung")
        ]
        inside = sum(row["low"] <= row["reached"] <= row["high"] for row in mine)
        cells = f"{errors[0]:6.2%} {errors[1]:6.2%} {errors[2]:11.2%} {errors[3]:13.2%}"
        print(f"{name:16} {len(mine):5} {cells}   {inside} of {len(mine)}")
    tried = [row for row in rows if row["what"] == "size"]
    for name in dict.fromkeys(row["corpus"] for row in tried):
        print(f"\n{name}: size over the chosen one, bits per byte of each seed")
        for size in SIZES:
            each = [row["reached"] for row in tried if (row["corpus"], row["size"]) == (name, size)]
            if each:
                print(f"  {size:5g}   {'  '.join(f'{value:.4f}' for value in each)}   mean {statistics.mean(each):.4f}")


def hours(corpora: list[tuple[str, str]], budget: str, with_sizes: bool, speed: float) -> float:
    """About how long everything takes, from nothing: a ladder's largest run has about 40 % of what one worker does in
    the ladder's time, at `speed` FLOP/s of a worker, and runs have 1.6 times that with both cores."""
    largest = 0.4 * 60 * minutes(budget) * speed
    runs = sum(FACTORS) + (FACTORS[RUNS // 2] * len(SIZES) * len(SEEDS) if with_sizes else 0.0)
    return len(corpora) * (minutes(budget) * 1.2 / 60 + runs * largest / (1.6 * speed) / 3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("ladder-study"))
    parser.add_argument("--budget", default="20m", help="of each ladder, in minutes, as in 20m")
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--hours", action="store_true")
    given = parser.parse_args()

    corpora = [(name, path) for name, _, path in (text.partition("=") for text in given.corpora)]
    if given.show:
        show(given.out)
    elif given.hours:
        print(f"about {hours(corpora, given.budget, given.sizes, 1e10):.1f} hours on two cores")
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        for name, path in corpora:
            (sizes if given.sizes else forecasts)(name, path, given.out, given.budget)


if __name__ == "__main__":
    main()
