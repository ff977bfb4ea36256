"""What came of a claim: its verdict, and what that rests on."""

from dataclasses import dataclass
from typing import Any

from isoflop.lab import stats
from isoflop.lab.study import Study
from isoflop.lab.verdict import EXIT_CODES, Decision, decide, number


@dataclass(frozen=True)
class Outcome:
    """What came of a claim.

    Attributes:
        pairs: that the verdict rests on.
        seconds: that this call took.
        fixed: when the claim was fixed, in Unix seconds.
        looks: verdicts that were given before, with fewer pairs.
    """

    study: Study
    decision: Decision
    pairs: int
    seconds: float
    fixed: float
    looks: int = 0

    def in_family(self, comparisons: int) -> str:
        """The verdict where Holm's correction is over so many comparisons, those of several claims together."""
        measured = self.study.measured(self.pairs)
        return decide(self.study.claim, measured, self.looks, comparisons).verdict

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.decision.verdict]

    def to_dict(self) -> dict[str, Any]:
        """For a program: the verdict, and what it rests on. `effect` and `interval` are those of the comparison that
        decided it."""
        claim, decision = self.study.claim, self.decision
        deciding = next(one for one in decision.findings if one.verdict == decision.verdict)
        needs = decision.needs
        return {
            "claim": claim.name,
            "statement": claim.statement,
            "hash": claim.hash,
            "verdict": decision.verdict,
            "exit_code": self.exit_code,
            "measure": deciding.comparison.measure,
            "effect": number(deciding.estimate.value),
            "interval": [number(deciding.estimate.low), number(deciding.estimate.high)],
            "smallest": deciding.comparison.smallest,
            "error_spent": decision.error_spent,
            "pairs": self.pairs,
            "pairs_to_settle": needs if needs < stats.MOST_PAIRS else None,
            "seconds": round(self.seconds, 1),
            "cost": self.study.cost(self.pairs),
            "rates": {
                arm: {"factor": self.study.factors.get(arm, 1.0), "bracketed": self.study.bracketed(arm)}
                for arm in self.study.trained
            },
            "comparisons": [finding.to_dict() for finding in decision.findings],
        }
