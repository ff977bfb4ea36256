"""From measured pairs to a verdict, by the rule that was fixed with the claim."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from isoflop.lab import anytime, stats
from isoflop.lab.claim import COSTS_TO, Claim, Comparison
from isoflop.lab.procedures.across import ON
from isoflop.lab.procedures.job import LOSSES, slope
from isoflop.lab.stats import Estimate

SUPPORTED, REFUTED, EQUIVALENT, UNDECIDED = "supported", "refuted", "equivalent", "undecided"
EXIT_CODES = {SUPPORTED: 10, REFUTED: 11, EQUIVALENT: 12, UNDECIDED: 13}
SIGNS = {"higher": 1.0, "lower": -1.0, "same": 1.0}

Values = Mapping[int, Mapping[str, float]]  # measures by name, by pair number


@dataclass(frozen=True)
class Finding:
    """The result of one comparison.

    Attributes:
        estimate: of arm - against, with its 1 - alpha interval.
        differences: pair by pair, in the order of their numbers.
        p, p_equivalent: adjusted by Holm over the claim's comparisons.
        signs: the sign-flip test's p; None where there are too few pairs for it to reject, or a difference is infinite.
        bootstrap: an interval from resampled pairs.
        needs: pairs that it would take to settle it; 0 where it is settled, and where no further pairs can be had.
        lost: runs of the arm, and of what it is compared with, that diverged or never reached the target loss.
        left_out: pairs without the measure, because a run of them diverged.
    """

    comparison: Comparison
    estimate: Estimate
    verdict: str
    differences: tuple[float, ...]
    p: float
    p_equivalent: float
    signs: float | None
    bootstrap: tuple[float, float]
    needs: int
    lost: tuple[int, int]
    left_out: int = 0

    @property
    def sd(self) -> float:
        """Standard deviation of the differences; not a number for fewer than two."""
        d = [value for value in self.differences if math.isfinite(value)]
        if len(d) < 2:
            return math.nan
        mean = sum(d) / len(d)
        return math.sqrt(sum((value - mean) ** 2 for value in d) / (len(d) - 1))

    @property
    def constant(self) -> bool:
        """Whether the difference is the same in every pair, but for rounding: no interval says how far it may be off,
        since it does not depend on the seed."""
        d = self.differences
        return len(d) > 1 and all(map(math.isfinite, d)) and max(d) - min(d) <= 1e-12 * max(map(abs, d))

    @property
    def measured(self) -> Estimate:
        """The estimate in the measure's own unit, where that is compared with a number: not less that number."""
        e, offset = self.estimate, self.comparison.value if self.comparison.fixed else 0.0
        return replace(e, value=e.value + offset, low=e.low + offset, high=e.high + offset)

    def to_dict(self) -> dict[str, Any]:
        """As JSON: an infinite number is null."""
        c, e, own = self.comparison, self.estimate, self.measured
        return {
            "measure": c.measure,
            "arm": c.arm,
            "against": c.against or (f"law through {', '.join(c.law)}" if c.law else c.value),
            **({"beyond": list(c.beyond)} if c.beyond else {}),
            "expect": c.expect,
            "smallest": c.smallest,
            "margin": c.zone,
            "verdict": self.verdict,
            "effect": number(e.value),
            "interval": [number(e.low), number(e.high)],
            **(
                {"measured": number(own.value), "measured_interval": [number(own.low), number(own.high)]}
                if c.fixed
                else {}
            ),
            **({"constant": True} if self.constant else {}),
            "bootstrap": [number(end) for end in self.bootstrap],
            "test": e.test,
            "p": self.p,
            "p_equivalent": self.p_equivalent,
            "p_sign_flip": self.signs,
            "pairs": e.pairs,
            "differences": [number(value) for value in self.differences],
            "lost": list(self.lost),
            **({"left_out": self.left_out} if self.left_out else {}),
            **({"aside": True} if c.aside else {}),
            "pairs_to_settle": self.needs,
        }


@dataclass(frozen=True)
class Decision:
    """A claim's verdict with the findings behind it.

    Attributes:
        error_spent: the chance of a wrong verdict that the looks so far add up to.
    """

    verdict: str
    findings: tuple[Finding, ...]
    error_spent: float

    @property
    def needs(self) -> int:
        """Pairs with which all comparisons would be expected to be settled; 0 if they are."""
        return max((finding.needs for finding in self.findings), default=0)


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def decide(claim: Claim, measured: Mapping[str, Values], looks_before: int = 0, comparing: int = 0) -> Decision:
    """The verdict on a claim.

    Args:
        measured: measures by arm and pair number; a comparison leaves out pairs that not all of its arms have.
        looks_before: verdicts that were given before with fewer pairs. Under the rule "fixed" the first one spends
            alpha; all later ones use the anytime rule and together spend alpha once more.
        comparing: the size of the family that Holm's correction is over, where it is larger than this claim.
    """
    setup = claim.setup
    anytime_rule = setup.rule == "anytime" or looks_before > 0
    found = [differences(comparison, measured) for comparison in claim.comparisons]
    estimates = [
        estimate(d, comparison, setup.alpha, anytime_rule)
        for d, comparison in zip(found, claim.comparisons, strict=True)
    ]
    family = max(comparing, len(found))
    same = [
        1.0 if both_lost(comparison, measured) else no_difference(d, comparison, setup.alpha, family, anytime_rule)
        for d, comparison in zip(found, claim.comparisons, strict=True)
    ]
    extra = [1.0] * max(0, comparing - len(found))
    adjusted = stats.holm([one.p for one in estimates] + extra)[: len(found)]
    adjusted_same = stats.holm(same + extra)[: len(found)]

    findings = []
    for index, comparison in enumerate(claim.comparisons):
        left_out = len(pairs_of(comparison, measured)) - len(found[index])
        judged = judge(comparison, estimates[index], adjusted[index], adjusted_same[index], setup.alpha)
        verdict = UNDECIDED if left_out else judged
        findings.append(
            Finding(
                comparison=comparison,
                estimate=estimates[index],
                verdict=verdict,
                differences=found[index],
                p=adjusted[index],
                p_equivalent=adjusted_same[index],
                signs=signs(found[index], setup.alpha, family),
                bootstrap=resampled(found[index], setup.alpha),
                needs=pairs_to_settle(claim, comparison, found[index], family, anytime_rule)
                if verdict == UNDECIDED and claim.open_ended
                else 0,
                lost=lost(comparison, measured),
                left_out=left_out,
            )
        )
    spent = setup.alpha * (2 if looks_before and setup.rule == "fixed" else 1)
    decisive = [finding.verdict for finding in findings if not finding.comparison.aside]
    return Decision(together(decisive), tuple(findings), spent)


def judge(comparison: Comparison, found: Estimate, p: float, p_equivalent: float, alpha: float) -> str:
    """The verdict on one comparison, see claim.Comparison."""
    equivalent = p_equivalent <= alpha
    if comparison.expect == "same":
        return SUPPORTED if equivalent else REFUTED if p <= alpha else UNDECIDED
    if equivalent:
        return EQUIVALENT
    if p > alpha:
        return UNDECIDED
    return SUPPORTED if SIGNS[comparison.expect] * found.value > 0 else REFUTED


def together(verdicts: Sequence[str]) -> str:
    """All comparisons that decide have to hold: one that is refuted refutes the claim, one that is open leaves it
    open."""
    for verdict in (REFUTED, UNDECIDED, EQUIVALENT):
        if verdict in verdicts:
            return verdict
    return SUPPORTED


def differences(comparison: Comparison, measured: Mapping[str, Values]) -> tuple[float, ...]:
    """arm - against, by pair. Pairs are left out that not all arms of the comparison have, and those in which a run has
    no such measure."""
    numbers = pairs_of(comparison, measured)
    one = [value_of(measured, comparison.arm, pair, comparison.measure) for pair in numbers]
    other = [reference(comparison, measured, pair) for pair in numbers]
    found = stats.subtract(one, other)
    if comparison.beyond:
        first, second = ([value_of(measured, arm, n, comparison.measure) for n in numbers] for arm in comparison.beyond)
        found = stats.subtract(found, stats.subtract(first, second))
    return tuple(float(value) for value in found if not math.isnan(value))


def pairs_of(comparison: Comparison, measured: Mapping[str, Values]) -> list[int]:
    """The numbers of the pairs that all arms of a comparison have."""
    return sorted(set.intersection(*(set(measured.get(arm, {})) for arm in arms_of(comparison))))


def both_lost(comparison: Comparison, measured: Mapping[str, Values]) -> bool:
    """Whether in some pair both sides are infinite: neither is better, and nobody knows by how much."""
    return any(
        math.isinf(value_of(measured, comparison.arm, n, comparison.measure))
        and math.isinf(reference(comparison, measured, n))
        for n in pairs_of(comparison, measured)
    )


def arms_of(comparison: Comparison) -> tuple[str, ...]:
    """The arms that a comparison needs runs of."""
    against = (comparison.against,) if comparison.against else ()
    return (comparison.arm, *against, *comparison.law, *comparison.beyond)


def value_of(measured: Mapping[str, Values], arm: str, pair: int, measure: str) -> float:
    """A run's measure. Without it, a loss or a cost is infinite, and others are not a number."""
    infinite = measure in (*LOSSES, *COSTS_TO, "flops") or measure.startswith(ON)
    return measured[arm][pair].get(measure, math.inf if infinite else math.nan)


def reference(comparison: Comparison, measured: Mapping[str, Values], pair: int) -> float:
    """What the arm of a pair is compared with: the other arm's measure, a number, or the prediction of a power law."""
    if comparison.law:
        return predicted(comparison, measured, pair)
    if comparison.against:
        return value_of(measured, comparison.against, pair, comparison.other or comparison.measure)
    return comparison.value


def predicted(comparison: Comparison, measured: Mapping[str, Values], pair: int) -> float:
    """What L = a C^-b, fitted by least squares of log L on log C to the arms of the law, predicts at the FLOPs of the
    arm. If a run of the law diverged, the prediction is infinite; if the arm diverged too, the two tie."""
    logs: list[tuple[float, float]] = []
    for arm in comparison.law:
        flops, loss = (value_of(measured, arm, pair, name) for name in ("flops", comparison.measure))
        if not 0 < flops < math.inf or not 0 < loss < math.inf:
            return math.inf
        logs.append((math.log(flops), math.log(loss)))
    flops = value_of(measured, comparison.arm, pair, "flops")
    at = math.log(flops) if 0 < flops < math.inf else logs[-1][0]  # a run that diverged has none, and an infinite loss

    x, y = ([point[axis] for point in logs] for axis in (0, 1))
    return math.exp(sum(y) / len(y) + slope(x, y) * (at - sum(x) / len(x)))


def by_median(d: Sequence[float], comparison: Comparison) -> bool:
    """Whether a comparison is by sign test and median: where a difference is infinite or could be."""
    return comparison.measure in COSTS_TO or not all(map(math.isfinite, d))


def estimate(d: Sequence[float], comparison: Comparison, alpha: float, anytime_rule: bool) -> Estimate:
    if by_median(d, comparison):
        return anytime.median_sequence(d, alpha) if anytime_rule else stats.median_difference(d, alpha)
    return anytime.confidence_sequence(d, alpha) if anytime_rule else stats.paired_t(d, alpha)


def no_difference(d: Sequence[float], comparison: Comparison, alpha: float, family: int, anytime_rule: bool) -> float:
    """The p-value of a difference at least as large as the margin. Where there is an interval only, 0 or 1: whether the
    one whose level holds for the whole family lies inside the margin."""
    if not anytime_rule and not by_median(d, comparison):
        return stats.equivalence(d, comparison.zone)
    level = alpha / family if anytime_rule else 2 * alpha / family  # two one-sided tests
    return 0.0 if estimate(d, comparison, level, anytime_rule).within(comparison.zone) else 1.0


def signs(d: Sequence[float], alpha: float, family: int) -> float | None:
    if not stats.enough_for_signs(len(d), alpha, family) or not all(map(math.isfinite, d)):
        return None
    return stats.sign_flip(d)


def resampled(d: Sequence[float], alpha: float) -> tuple[float, float]:
    return stats.bootstrap(d, alpha) if all(map(math.isfinite, d)) else (-math.inf, math.inf)


def pairs_to_settle(claim: Claim, comparison: Comparison, d: Sequence[float], family: int, anytime_rule: bool) -> int:
    """Pairs needed, at the claim's power, to detect the smallest effect or to show its absence, by the scatter of the
    differences so far; MOST_PAIRS where that is not known."""
    finite = [value for value in d if math.isfinite(value)]
    if d and by_median(d, comparison):  # signs decide: as many as can, and one more than could not
        alpha = claim.setup.alpha / family
        least = anytime.pairs_for_signs(alpha) if anytime_rule else stats.pairs_for_signs(alpha)
        return max(least, len(d) + 1)
    if len(finite) < 2:
        return stats.MOST_PAIRS
    mean = sum(finite) / len(finite)
    sd = math.sqrt(sum((value - mean) ** 2 for value in finite) / (len(finite) - 1))
    return pairs_for(claim, comparison, sd, family, anytime_rule)


def pairs_for(claim: Claim, comparison: Comparison, sd: float, family: int, anytime_rule: bool) -> int:
    """Pairs needed, given the standard deviation of a difference."""
    setup = claim.setup
    alpha = setup.alpha / family
    if anytime_rule:
        return anytime.required_pairs(comparison.smallest, sd, alpha, setup.power)
    return max(
        stats.required_pairs(comparison.smallest, sd, alpha, setup.power),
        stats.required_for_equivalence(comparison.zone, sd, alpha, setup.power),
    )


def detectable(claim: Claim, sd: float, pairs: int) -> float:
    """The smallest difference that so many pairs find at the claim's power by its rule, given the standard deviation of
    a difference; infinite where none is found, whatever its size."""
    setup = claim.setup
    rule = anytime.detectable if setup.rule == "anytime" else stats.detectable
    return rule(pairs, sd, setup.alpha / len(claim.comparisons), setup.power)


def lost(comparison: Comparison, measured: Mapping[str, Values]) -> tuple[int, int]:
    """How many runs of each side have no finite value."""

    def count(arm: str, name: str) -> int:
        return sum(not math.isfinite(value_of(measured, arm, pair, name)) for pair in measured.get(arm, {}))

    theirs = count(comparison.against, comparison.other or comparison.measure) if comparison.against else 0
    return count(comparison.arm, comparison.measure), theirs
