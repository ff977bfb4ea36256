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
        items: how many both were asked.
        only_first, only_second: items on which only the one, or only the other, is right; None for a perplexity.
        real: the difference is real, after Holm over all that are compared together.
    """

    suite: str
    metric: str
    first: str
    second: str
    measured: Difference
    items: int
    only_first: int | None
    only_second: int | None
    real: bool

    @property
    def better(self) -> str:
        """The one that is better by what was measured, real or not; "" where neither is."""
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
            "items": self.items,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "p": measured.p,
            "test": measured.test,
            "real": self.real,
        }


def compare(scores: Mapping[str, Sequence[Scores]]) -> list[Compared]:
    """Every two models on every suite, by its headline, and by a perplexity if it has one: that tells models apart of
    which none is ever right.

    Args:
        scores: by the model's name, its scores on the same suites in the same order.
    """
    pairs = [
        (first, second, a.asked.suite.name, metric, a.values[metric], b.values[metric])
        for first, second in combinations(scores, 2)
        for a, b in zip(scores[first], scores[second], strict=True)
        for metric in a.values
        if metric == a.metric or not METRICS[metric].shares
    ]
    measured = [paired(a, b, METRICS[metric].shares) for *_, metric, a, b in pairs]
    real = holm([one.p for one in measured])
    compared = []
    for (first, second, name, metric, a, b), difference, is_real in zip(pairs, measured, real, strict=True):
        only_first, only_second = (int((a > b).sum()), int((b > a).sum())) if METRICS[metric].shares else (None, None)
        counts = (len(a), only_first, only_second)
        compared.append(Compared(name, metric, first, second, difference, *counts, is_real))
    return compared
