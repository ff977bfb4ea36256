"""Make the table behind the loss that a plan expects: isoflop/plan/prior.json.

    python bench/prior.py CORPUS=PATH [CORPUS=PATH ...] [--flops 5e11 2e12 6e12] [--seeds 0] [--threads N]

Each corpus is pretrained on with each FLOPs budget and seed, exactly as `isoflop train --budget` would, and a row is
written for each run: corpus, how predictable it is, N, D, FLOPs (6ND), unique tokens, vocabulary, seed and
the held-out bits per byte reached. A row takes the place of the one with its corpus and seed and about its FLOPs; the
others stay, so that the plan always has a table. Budgets are in FLOPs, so what else the machine does has no influence.
CORPUS=stdlib is the default corpus.
"""

import argparse
import fcntl
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from isoflop.files import write_json
from isoflop.job import pretrain
from isoflop.records import read_run
from isoflop.trainer.loop import RunResult

TABLE = Path(__file__).parents[1] / "isoflop" / "plan" / "prior.json"
COMMAND = "python bench/prior.py CORPUS=PATH ... --flops 5e11 2e12 6e12 2e13 6e13 --seeds 0 1"
ALIKE = 0.1  # difference of the logarithms of two runs' FLOPs


def one_run(corpus: str, path: str, flops: float, seed: int, threads: int) -> dict[str, Any]:
    """Train once and say what came of it."""
    sources = () if path == "stdlib" else (f"{corpus}={path}",)
    with tempfile.TemporaryDirectory() as folder:
        result = pretrain(
            sources,
            f"{flops:g}flop",
            Path(folder) / "run",
            assignments=[f"seed={seed}", f"runtime.threads={threads}"],
        )
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
        "seed": seed,
        "bits_per_byte": round(run.result.heldout.bits_per_byte, 4),
    }


def same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows are of one corpus, seed and budget: shapes differ, and with them the FLOPs by a little."""
    alike = one["corpus"] == other["corpus"] and one["seed"] == other["seed"]
    return alike and abs(math.log(one["flops"] / other["flops"])) < ALIKE


def add_row(row: dict[str, Any]) -> None:
    """Put a row into the table; two of these programs may run side by side."""
    with TABLE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = json.loads(TABLE.read_text(encoding="utf-8"))["runs"] if TABLE.exists() else []
        others = [other for other in rows if not same_run(row, other)]
        rows = sorted([*others, row], key=lambda r: (r["corpus"], r["flops"], r["seed"]))
        write_json(TABLE, {"command": COMMAND, "runs": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="CORPUS=PATH")
    parser.add_argument("--flops", nargs="+", type=float, default=[5e11, 2e12, 6e12])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    for flops in given.flops:
        for text in given.corpora:
            corpus, _, path = text.partition("=")
            for seed in given.seeds:
                row = one_run(corpus, path, flops, seed, given.threads)
                print(json.dumps(row), flush=True)
                add_row(row)


if __name__ == "__main__":
    main()
