"""Several models on the same items of the suites, next to chance and to published figures: the table of
docs/evaluation.md.

    python bench/suites.py NAME=RUN [NAME=RUN ...] --items FOLDER [--limit 300] [--suites ...] [--threads N] [--json]

--limit takes that many items of a suite, evenly spaced and as many of each subset; 0 takes all. With --json the record
is written after each suite, so that an interrupted measurement keeps what it has.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from isoflop.evaluate.methods import METRICS
from isoflop.evaluate.scores import Asked, ask, plain, score
from isoflop.job.suites import load_for_scoring
from isoflop.processors import cores
from record import record

# those that cost least first
SUITES = ("copa", "blimp", "winogrande", "openbookqa", "piqa", "arc_easy", "arc_challenge", "lambada")
DEARER = ("boolq", "hellaswag", "sciq")


def limited(name: str, items: Path, limit: int) -> tuple[Asked, bool]:
    """A suite with about `limit` items, and whether those are all."""
    asked = ask(name, items)
    if not limit or len(asked.items) <= limit:
        return asked, True
    return ask(name, items, max(1, limit // max(1, len(asked.subsets)))), False


def published(asked: Asked) -> str:
    """The figures that a suite's file names for its headline, in one line."""
    figures = [one for one in asked.suite.reference if one.metric in ("", asked.metric)]
    share = METRICS[asked.metric].shares
    return "; ".join(f"{one.model} {100 * one.score if share else one.score:.1f}" for one in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--suites", nargs="+", default=[*SUITES, *DEARER])
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/suites.json")
    given = parser.parse_args()
    runs = dict(one.split("=", 1) for one in given.runs)
    models = {name: load_for_scoring(Path(run)) for name, run in runs.items()}
    torch.set_num_threads(given.threads)

    rows: list[dict[str, Any]] = []
    for suite in given.suites:
        asked, whole = limited(suite, given.items, given.limit)
        scores = {}
        for name, (model, tokenizer, _, runtime) in models.items():
            scored = score(model, tokenizer, asked, runtime)
            scores[name] = {**plain(scored.score()), "seconds": round(scored.seconds, 1), "cut": scored.cut}
        rows.append(
            {
                "suite": suite,
                "metric": asked.metric,
                "items": len(asked.items),
                "whole": whole,
                "chance": asked.chance if METRICS[asked.metric].shares else None,
                "scores": scores,
                "published": published(asked),
            }
        )
        shown = ", ".join(
            f"{name} {one['score']:.3f} ({one['low']:.3f} to {one['high']:.3f})" for name, one in scores.items()
        )
        print(f"{suite} by {asked.metric}, {len(asked.items):,} items: {shown}", flush=True)
        if given.json:
            about = {name: {"parameters": sum(p.numel() for p in one[0].parameters())} for name, one in models.items()}
            record("suites", {"runs": about, "threads": given.threads, "suites": rows})


if __name__ == "__main__":
    main()
