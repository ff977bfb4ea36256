"""Several models on the same items: which differences are real (statistics.py has the tests)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from isoflop.evaluate.methods import METRICS
from isoflop.evaluate.scores import Scores
from isoflop.evaluate.statistics import Difference, holm, paired


@dataclass(frozen=True)
class Compared:
    """Two models on a suite.

    Attributes:
        first, second: what they are called.
        measured: the second less the first, in shares, or in nats per item where the metric is a perplexity.
        only_first, only_second: items on which only the one, or only the other, is right; None for a perplexity.
        real: the difference is real, after Holm over all that are compared together.
    """

    suite: str
    metric: str
    first: str
    second: str
    measured: Difference
    only_first: int | None
    only_second: int | None
    real: bool

    @property
    def better(self) -> str:
        """The one that is better by what was measured, real or not; "" where they are alike."""
        more = self.measured.difference.value * (-1 if METRICS[self.metric].lower else 1)
        return self.second if more > 0 else self.first if more < 0 else ""

    def to_dict(self) -> dict[str, Any]:
        measured = self.measured
        return {
            "suite": self.suite,
            "metric": self.metric,
            "first": self.first,
            "second": self.second,
            "difference": measured.difference.value,
            "low": measured.difference.low,
            "high": measured.difference.high,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "p": measured.p,
            "test": measured.test,
            "real": self.real,
        }


def compare(scores: Mapping[str, Sequence[Scores]]) -> list[Compared]:
    """Every two models on every suite, by its headline.

    Args:
        scores: by the model's name, its scores on the same suites in the same order.
    """
    pairs = [
        (first, second, a, b)
        for first, second in combinations(scores, 2)
        for a, b in zip(scores[first], scores[second], strict=True)
    ]
    measured = [paired(a.values[a.metric], b.values[b.metric], METRICS[a.metric].shares) for _, _, a, b in pairs]
    real = holm([one.p for one in measured])
    compared = []
    for (first, second, a, b), difference, is_real in zip(pairs, measured, real, strict=True):
        more = b.values[b.metric] - a.values[a.metric]
        shares = METRICS[a.metric].shares
        only_first, only_second = (int((more < 0).sum()), int((more > 0).sum())) if shares else (None, None)
        name = a.asked.suite.name
        compared.append(Compared(name, a.metric, first, second, difference, only_first, only_second, is_real))
    return compared
