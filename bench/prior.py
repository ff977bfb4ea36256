"""Make isoflop/plan/prior.json, which forecasts are made from: runs, and the estimates from them.

    python bench/prior.py CORPUS=PATH [CORPUS=PATH ...]            all runs that are missing, then the estimates
    python bench/prior.py CORPUS=PATH ... --hours                  which runs are missing, and about how long they take
    python bench/prior.py CORPUS=PATH ... --only texts             measure the predictability of each text again
    python bench/prior.py CORPUS=PATH ... --only pilots            make pilots of the runs that have none
    python bench/prior.py --only estimates                         the estimates from the present runs
    python bench/prior.py --only study                             errors with each corpus left out in turn, as a table

There is one run per corpus, FLOPs budget and seed of GRID, exactly as by `isoflop train --budget`, with its pilots
first (plan/pilot.py), however small the budget. Each run is written as a row when it ends: corpus and its
predictability, N, D, FLOPs (6 N D), unique tokens, vocabulary, width, seed, held-out bits per byte reached, seconds,
pilots, and `made`, a digest of the recipe and of the rules for held-out text, vocabulary and shape. A row with another
`made` counts as missing. It stays until a new row of the same corpus, seed and about the same FLOPs replaces it, so
that the planner always has a table. Started again, the command continues with the missing runs; several commands may
run at once with different corpora. Budgets are in FLOPs, so that other programs on the machine change only the time.
CORPUS=stdlib is the default corpus.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import math
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from isoflop.budget import Budget
from isoflop.data.config import DataConfig
from isoflop.data.excerpt import excerpt
from isoflop.data.prepare import Prepared
from isoflop.data.survey import SAMPLE_BYTES
from isoflop.files import write_json
from isoflop.job import pretrain
from isoflop.job.pilots import PilotMaker
from isoflop.plan import pilot as pilot_rules
from isoflop.plan.candidates import HEAD_WORTH
from isoflop.plan.planner import plan
from isoflop.plan.predictability import predictability
from isoflop.plan.prior import calibrate, corpora_of, estimate, leave_corpora_out
from isoflop.plan.recipe import recipe_of
from isoflop.plan.settings import vocabulary_for, with_decay, with_recipe
from isoflop.records import PilotRun, read_run
from isoflop.trainer import RunConfig
from isoflop.trainer.loop import RunResult

TABLE = Path(__file__).parents[1] / "isoflop" / "plan" / "prior.json"
COMMAND = "python bench/prior.py CORPUS=PATH ..."
ALIKE = 0.12  # difference of the logarithms of two runs' FLOPs: pilots take 5 % of a budget
# FLOPs of a budget, its seeds, and the bytes of text that a corpus has to have for it
GRID = ((5e11, (0, 1), 0.0), (2e12, (0, 1), 0.0), (6e12, (0,), 0.0), (2e13, (0,), 1e7), (6e13, (0,), 4e7))
FEWEST_CORPORA = 4
USUAL = 1.5e10  # FLOP/s per thread, assumed if no row has a speed


def made() -> str:
    """A digest of what a run depends on besides its budget: the recipe, the rules by which text is held out, and those
    that choose vocabulary and shape."""
    recipe = recipe_of(with_recipe(RunConfig()))
    decides = {"recipe": recipe, "split": DataConfig().split, "held out": DataConfig().heldout_fraction}
    decides |= {"ids": [vocabulary_for(flops, 1e9) for flops, _, _ in GRID], "head": HEAD_WORTH}
    decides |= {"decay": [with_decay(RunConfig(), epochs).optim.weight_decay_factor for epochs in (5, 10, 30)]}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def assignments(seed: int, threads: int) -> list[str]:
    return [f"seed={seed}", f"runtime.threads={threads}"]


def sources_of(corpus: str, path: str) -> tuple[str, ...]:
    return () if path == "stdlib" else (f"{corpus}={path}",)


def one_run(corpus: str, path: str, flops: float, seed: int, threads: int) -> dict[str, Any]:
    """Train once, with pilots. Returns the row."""
    with tempfile.TemporaryDirectory() as folder, pilots_always():
        began = time.monotonic()
        out = Path(folder) / "run"
        result = pretrain(sources_of(corpus, path), f"{flops:g}flop", out, assignments=assignments(seed, threads))
        seconds = time.monotonic() - began
        assert isinstance(result, RunResult)
        run = read_run(result.folder)
    return {
        "corpus": corpus,
        "ngram": round(run.plan.predictability.ngram, 4),
        "lzma": round(run.plan.predictability.lzma, 4),
        "parameters": run.plan.parameters,
        "tokens": result.tokens,
        "flops": result.flops,
        "unique_tokens": run.plan.unique_tokens,
        "vocab_size": run.config["model"]["vocab_size"],
        "d_model": run.config["model"]["d_model"],
        "seed": seed,
        "bits_per_byte": round(run.result.heldout.bits_per_byte, 4),
        "seconds": round(seconds),
        "pilots": [pilot_row(one) for one in run.plan.pilots or ()],
        "made": made(),
    }


def pilot_row(one: PilotRun) -> dict[str, Any]:
    return {
        "parameters": one.parameters,
        "d_model": one.d_model,
        "tokens": one.tokens,
        "flops": one.flops,
        "unique_tokens": one.unique_tokens,
        "steps": one.steps,
        "bits_per_byte": round(one.bits_per_byte or math.nan, 4),
    }


@contextlib.contextmanager
def pilots_always():
    """A context in which every budget in FLOPs has pilots."""
    before, pilot_rules.FROM = pilot_rules.FROM, {"flops": 0.0}
    try:
        yield
    finally:
        pilot_rules.FROM = before


def planned(corpus: str, path: str, flops: float, seed: int, threads: int, maker: PilotMaker | None):
    """The plan of a run and its data, without the run."""
    from isoflop.plan.asked import Asked
    from isoflop.trainer.config import DataConfig as Data

    asked = Asked.of(assignments(seed, threads))
    config = asked.apply(RunConfig(data=Data(sources=sources_of(corpus, path))))
    with pilots_always():
        return plan(Budget("flops", flops), config, asked, say=print, make_pilots=maker)


def add_pilots(row: dict[str, Any], path: str, threads: int) -> dict[str, Any]:
    """The row of a run without pilots, with pilots added."""
    advice, _ = planned(row["corpus"], path, row["flops"], row["seed"], threads, PilotMaker(print))
    return {**row, "pilots": [pilot_row(one) for one in advice.pilots]}


def budget_of(row: dict[str, Any]) -> float:
    """The FLOPs budget of GRID that a row was made with: the run has somewhat fewer."""
    return min((flops for flops, _, _ in GRID), key=lambda flops: abs(math.log(flops / row["flops"])))


def measure_text(corpus: str, path: str, flops: float, threads: int) -> dict[str, float]:
    """The predictability of a corpus, as measured by a run with this FLOPs budget: columns of a row."""
    _, data = planned(corpus, path, flops, 0, threads, None)
    assert isinstance(data, Prepared)
    found = predictability(excerpt(data, SAMPLE_BYTES))
    return {"ngram": round(found.ngram, 4), "lzma": round(found.lzma, 4)}


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows have the same corpus, seed and budget. Their FLOPs may differ a little, as their shapes do."""
    alike = one["corpus"] == other["corpus"] and one["seed"] == other["seed"]
    return alike and abs(math.log(one["flops"] / other["flops"])) < ALIKE


def change_table(change: Any, estimated: bool = False) -> None:
    """Apply `change` to the rows of the table, safe if several of these programs run at once.

    Args:
        estimated: whether to recompute the estimates too, which takes seconds.
    """
    with TABLE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
        rows = change(before.get("runs", []))
        rows.sort(key=lambda row: (row["corpus"], row["flops"], row["seed"]))
        whole = {**before, "command": COMMAND, "recipe": recipe_of(with_recipe(RunConfig())), "runs": rows}
        write_json(TABLE, {**whole, **(estimates(rows) if estimated else {})})


def add_row(row: dict[str, Any]) -> None:
    """Add a row to the table, replacing that of the same run."""
    change_table(lambda rows: [*(one for one in rows if not same_run(row, one)), row])


def read_rows() -> list[dict[str, Any]]:
    return list(json.loads(TABLE.read_text(encoding="utf-8"))["runs"]) if TABLE.exists() else []


def estimates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is estimated from the runs: the distribution of corpora's laws, and the corrections of standard deviations;
    empty if there are too few corpora to leave one out."""
    if len({row["corpus"] for row in rows}) < FEWEST_CORPORA:
        return {}
    calibration = calibrate(leave_corpora_out(rows))
    population = estimate(list(corpora_of(rows).values()))
    return {"population": population.to_dict(), "calibration": {**vars(calibration)}}


def missing(rows: list[dict[str, Any]], corpora: dict[str, str]) -> list[tuple[float, str, int]]:
    """(FLOPs, corpus, seed) of the missing runs, the cheapest first."""
    found = []
    for flops, seeds, least in GRID:
        for corpus, path in corpora.items():
            size = math.inf if path == "stdlib" else text_bytes(corpus, path)
            for seed in seeds:
                wanted = {"corpus": corpus, "flops": flops, "seed": seed}
                there = any(same_run(row, wanted) and row.get("made") == made() for row in rows)
                if size >= least and not there:
                    found.append((flops, corpus, seed))
    return found


def text_bytes(corpus: str, path: str) -> float:
    from isoflop.data.prepare import survey

    return float(survey(DataConfig(sources=(f"{corpus}={path}",))).bytes)


def hours(todo: list[tuple[float, str, int]], rows: list[dict[str, Any]]) -> float:
    """An estimate of the hours that runs will take, from the speeds of the rows."""
    timed = [row for row in rows if row.get("seconds")]
    speed = sum(row["flops"] for row in timed) / sum(row["seconds"] for row in timed) if timed else USUAL
    return sum(flops for flops, _, _ in todo) / speed / 3600


def show_study(rows: list[dict[str, Any]]) -> None:
    """Print the errors of forecasts with each corpus left out in turn: from the text alone, and with smaller runs."""
    errors = leave_corpora_out(rows)
    groups = {"from the text alone": [one for one in errors if one.decades is None]}
    for low, high in ((2, 6), (6, 20), (20, 60), (60, 1e9)):
        title = (
            f"one run of {1 / high:.2g} to {1 / low:.2g} of its compute" if high < 1e9 else f"less than {1 / low:.2g}"
        )
        groups[title] = [
            one for one in errors if one.decades is not None and not one.pilots and low <= 10**one.decades < high
        ]
    groups["its pilots"] = [one for one in errors if one.pilots]
    print(f"{'':<40}{'runs':>6}{'error':>8}{'stated':>8}{'bias':>8}")
    for title, some in groups.items():
        if some:
            error = math.sqrt(sum(one.error**2 for one in some) / len(some))
            stated = math.sqrt(sum(one.deviation**2 for one in some) / len(some))
            bias = sum(one.error for one in some) / len(some)
            print(f"{title:<40}{len(some):>6}{error:>8.1%}{stated:>8.1%}{bias:>+8.1%}")
    print(json.dumps(estimates(rows), indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="*", metavar="CORPUS=PATH")
    parser.add_argument("--only", choices=["texts", "pilots", "estimates", "study"])
    parser.add_argument("--hours", action="store_true", help="print the missing runs and about how long they take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=float, default=math.inf, help="FLOPs of the largest run to consider")
    parser.add_argument("--least", type=float, default=0.0, help="of the smallest run, for --only pilots and texts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the runs, for --only pilots")
    given = parser.parse_args()
    corpora = dict(text.partition("=")[::2] for text in given.corpora)

    if given.only == "study":
        return show_study(read_rows())
    if given.only == "estimates":
        return change_table(lambda rows: rows, estimated=True)
    if given.only == "texts":
        measured = cache(measure_text)  # seeds have the same text
        for row in read_rows():
            if row["corpus"] in corpora and given.least <= row["flops"] <= given.most:
                found = measured(row["corpus"], corpora[row["corpus"]], budget_of(row), given.threads)
                print(row["corpus"], f"{row['flops']:.2g}", found, flush=True)
                change_table(
                    lambda rows, row=row, found=found: [{**one, **found} if one == row else one for one in rows]
                )
        return change_table(lambda rows: rows, estimated=True)
    if given.only == "pilots":
        for row in read_rows():
            wanted = row["corpus"] in corpora and row["seed"] in given.seeds and not row.get("pilots")
            if wanted and given.least <= row["flops"] <= given.most:
                done = add_pilots(row, corpora[row["corpus"]], given.threads)
                print(json.dumps(done), flush=True)
                change_table(lambda rows, row=row, done=done: [done if other == row else other for other in rows])
        return change_table(lambda rows: rows, estimated=True)

    todo = [one for one in missing(read_rows(), corpora) if one[0] <= given.most]
    print(f"{len(todo)} runs are missing: about {hours(todo, read_rows()):.1f} hours, one after the other", flush=True)
    for flops, corpus, seed in todo:
        if given.hours:
            print(f"  {corpus} {flops:.0e} FLOPs, seed {seed}")
            continue
        row = one_run(corpus, corpora[corpus], flops, seed, given.threads)
        print(json.dumps(row), flush=True)
        add_row(row)
    return None if given.hours else change_table(lambda rows: rows, estimated=True)


if __name__ == "__main__":
    main()
