"""Records what a lab's folder says of its claims, for the table in docs/lab.md.

    python bench/lab.py LAB [--at COMMIT] [--json]

Prints a line per claim, from what is on record in LAB (`isoflop lab run` put it there): no run is repeated. `--at` is
the commit that the runs were made at, if it is not this one.
"""

import argparse
from pathlib import Path
from typing import Any

from isoflop.lab.outcome import Outcome
from isoflop.lab.recorded import all_recorded
from isoflop.lab.store import Store
from isoflop.lab.verdict import number
from isoflop.lab.wording import measured_words, verdict_line
from record import ROOT, commit, record


def summary(outcome: Outcome) -> dict[str, Any]:
    """What the table says of a claim."""
    claim, finding, spent = outcome.study.claim, outcome.deciding, outcome.study.cost(outcome.complete)
    one = finding.estimate
    machines = {
        str(row.machine.get("processor"))
        for arm in outcome.study.arms
        for row in outcome.study.rows(arm.name, outcome.pairs)
        if row.machine
    }
    return {
        "claim": claim.name,
        "statement": claim.statement,
        "verdict": outcome.decision.verdict,
        "measure": finding.comparison.measure,
        "effect": number(one.value),
        "interval": [number(one.low), number(one.high)],
        "smallest": finding.comparison.smallest,
        "pairs": outcome.pairs,
        "predictions": [
            {
                "prediction": each.comparison.sentence,
                "verdict": each.verdict,
                "aside": each.comparison.aside,
                "found": measured_words(each).rpartition(", ")[0] or measured_words(each),
            }
            for each in outcome.decision.findings
        ],
        "runs": sum(part["runs"] for part in spent.values()),
        "process_seconds": sum(part["seconds"] for part in spent.values()),
        "error_spent": outcome.decision.error_spent,
        "hash": claim.hash,
        "machines": sorted(machines),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="LAB")
    parser.add_argument("--at", default="", help="the commit of the runs")
    parser.add_argument("--json", action="store_true", help="record it in bench/results/lab.json")
    given = parser.parse_args()

    outcomes = [one for one in all_recorded(Store(given.folder), print) if one.finished]
    for one in outcomes:
        print(f"{one.study.claim.name:22} {verdict_line(one)}")
    if not outcomes:
        parser.error(f"{given.folder} has no verdict yet")
    if given.json:
        record("lab", {"runs_at": given.at or commit(ROOT), "rows": [summary(outcome) for outcome in outcomes]})


if __name__ == "__main__":
    main()
