"""The result of a claim: its verdict, and what that rests on."""

from dataclasses import dataclass
from typing import Any

from isoflop.errors import quoted
from isoflop.lab import stats
from isoflop.lab.study import Study
from isoflop.lab.verdict import EXIT_CODES, UNDECIDED, Decision, Finding, decide, number


@dataclass(frozen=True)
class Outcome:
    """The result of a claim.

    Attributes:
        pairs: that the verdict rests on.
        seconds: that this call took.
        fixed: when the claim was fixed, in Unix seconds.
        looks: verdicts that were given before, with fewer pairs.
        complete: pairs of which all arms are on record.
        planned: pairs that an unfinished claim waits for; 0 if that is not known yet.
        finished: whether `decision` is a verdict. If not, it is what the rule allows to be seen before all pairs are
            there: nothing, or an interval that is valid at any time.
    """

    study: Study
    decision: Decision
    pairs: int
    seconds: float
    fixed: float
    looks: int = 0
    complete: int = 0
    planned: int = 0
    finished: bool = True

    def in_family(self, comparisons: int) -> str:
        """The verdict where Holm's correction is over so many comparisons, those of several claims together."""
        measured = self.study.measured(self.pairs)
        return decide(self.study.claim, measured, self.looks, comparisons).verdict

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.decision.verdict]

    @property
    def deciding(self) -> Finding:
        """The first of the comparisons that made the verdict what it is."""
        return next(
            one for one in self.decision.findings if one.verdict == self.decision.verdict and not one.comparison.aside
        )

    @property
    def command(self) -> str:
        """The command that repeats it: as it was given, or what it has to have been."""
        claim = self.study.claim
        given = [str(line["command"]) for line in self.study.store.fixings(claim) if line.get("command")]
        if given:
            return given[-1]
        full = " --full" if claim.name != claim.own_name else ""
        return " ".join([f"isoflop lab run {claim.own_name}{full}", *map(quoted, claim.setup.sources)])

    @property
    def pair_seconds(self) -> float:
        """What the runs of one pair took on average, one after the other; 0 if there are none."""
        rows = [self.study.rows(arm.name, self.complete) for arm in self.study.arms]
        return sum(sum(row.seconds for row in found) / len(found) for found in rows if found)

    def settle(self) -> dict[str, Any] | None:
        """What would settle an undecided verdict: pairs in all, pairs to be added, about how many minutes those take
        one process, and the command that adds them. None where it is settled, or too little was measured to say."""
        needs = self.decision.needs
        if self.decision.verdict != UNDECIDED or not 0 < needs < stats.MOST_PAIRS:
            return None
        more = max(1, needs - self.pairs)
        minutes = more * self.pair_seconds / 60
        budget = f" --budget {max(1, round(1.2 * minutes + 0.5))}m" if self.study.trained else ""
        return {
            "pairs": needs,
            "more_pairs": more,
            "process_minutes": round(minutes, 1),
            "command": f"{self.command}{budget}",
        }

    def to_dict(self) -> dict[str, Any]:
        """For a program: the verdict, and what it rests on. `effect` and `interval` are those of the comparison that
        decided it."""
        claim, decision, deciding = self.study.claim, self.decision, self.deciding
        needs = decision.needs
        return {
            "claim": claim.name,
            "statement": claim.statement,
            "hash": claim.hash,
            "finished": self.finished,
            "verdict": decision.verdict if self.finished else None,
            "exit_code": self.exit_code if self.finished else None,
            "measure": deciding.comparison.measure,
            "effect": number(deciding.estimate.value),
            "interval": [number(deciding.estimate.low), number(deciding.estimate.high)],
            "smallest": deciding.comparison.smallest,
            "error_spent": decision.error_spent,
            "rule": claim.setup.rule,
            "pairs": self.pairs,
            "seeds": self.seeds(),
            "complete_pairs": self.complete,
            "planned_pairs": self.planned or None,
            "pairs_to_settle": needs if needs < stats.MOST_PAIRS else None,
            "to_settle": self.settle(),
            "seconds": round(self.seconds, 1),
            "cost": self.study.cost(self.complete),
            "versions": self.study.versions(self.complete),
            "held_equal": list(claim.setup.equal),
            "tokens": claim.setup.tokens or None,
            "rates": {
                arm: {"factor": self.study.factors.get(arm, 1.0), "bracketed": self.study.bracketed(arm)}
                for arm in self.study.trained
            },
            "comparisons": [finding.to_dict() for finding in decision.findings],
            "command": self.command,
        }

    def seeds(self) -> list[int]:
        """The seeds of the pairs that the verdict rests on; one seed stands for a procedure that does not depend on
        it."""
        return sorted({job.order for number in range(self.pairs) for job in self.study.pair(number)})
