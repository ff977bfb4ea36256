"""A claim at several sizes on its page: the differences side by side, and where they lead."""

import math
from collections.abc import Sequence

import numpy as np

from isoflop.lab import drawn
from isoflop.lab.claim import Claim, Comparison
from isoflop.lab.outcome import Outcome
from isoflop.lab.trend import AHEAD, FEWEST, Ahead, ahead
from isoflop.lab.verdict import Finding
from isoflop.lab.wording import JUDGEMENTS, coloured, signed, unit
from isoflop.report.drawing import RUN_COLORS
from isoflop.report.style import key, section, table
from isoflop.report.words import MISSING, power, text

FITTED = "bits_per_byte"  # the measure that a law with an irreducible loss is for


def from_size_to_size(claim: Claim, outcomes: Sequence[Outcome]) -> str:
    """The section of a claim's page about its sizes, as HTML; empty with fewer than two.

    Args:
        outcomes: of any claims; those of this one's sizes are shown.
    """
    asked = [question(comparison) for comparison in claim.comparisons]
    sized = sorted(
        (
            one
            for one in outcomes
            if one.study.claim.own_name == claim.own_name
            and one.finished
            and one.pairs
            and [question(comparison) for comparison in one.study.claim.comparisons] == asked
        ),
        key=flops_of,
    )
    if len(sized) < 2:
        return ""
    comparisons = sized[0].study.claim.comparisons
    rows, notes = [], []
    for index, comparison in enumerate(comparisons):
        findings = [one.decision.findings[index] for one in sized]
        cells = [f"{signed(f.estimate.value)}<br>{coloured(JUDGEMENTS[f.verdict], 'small')}" for f in findings]
        expected = extrapolated(sized, index)
        rows.append([text(comparison.sentence), *cells, direction(findings), *map(interval, expected)])
        if disagree(*expected):
            notes.append(
                f"<p>Whether {text(comparison.sentence)} at {AHEAD:g} times the compute depends on whether both arms "
                "approach one irreducible loss: these runs do not decide that.</p>"
            )
    heads = [
        "prediction",
        *map(name_of, sized),
        "trend",
        f"at {AHEAD:g} times,<br>one E for both",
        f"at {AHEAD:g} times,<br>an E for each",
    ]
    lead = (
        "Differences at each size, arm less what it is compared with. The last two columns are not measured: they "
        "continue L(C) = E + a C^-b, with 95 % bootstrap intervals over pairs, once with one irreducible loss E for "
        "both arms and once with one for each; misfit: how far, in the root mean square, the law is from the losses. "
        f"They need {FEWEST} sizes and losses in bits per byte."
    )
    body = table(heads, rows, set(range(1, len(heads)))) + "".join(notes) + figure(sized)
    return section("From size to size", lead, body)


def question(comparison: Comparison) -> tuple[object, ...]:
    """What a comparison is of, whatever its words and its smallest effect."""
    c = comparison
    return c.measure, c.arm, c.against, c.other, c.value, c.law, c.beyond, c.expect


def name_of(outcome: Outcome) -> str:
    size = text(outcome.study.claim.size or "own size")
    return f"{size}<br><small>{power(flops_of(outcome))} FLOPs</small>"


def flops_of(outcome: Outcome) -> float:
    """Mean FLOPs of the runs at this size."""
    known = [arm.flops for arm in outcome.study.arms if arm.flops]
    return sum(known) / len(known) if known else 0.0


def direction(findings: Sequence[Finding]) -> str:
    """Whether the effect grows, shrinks or changes sign with the model's size."""
    first, last = findings[0].estimate, findings[-1].estimate
    if not all(map(math.isfinite, (first.value, last.value, first.low, first.high, last.low, last.high))):
        return MISSING
    if last.high < first.low or last.low > first.high:
        if first.value * last.value < 0:
            return "turns"
        return "grows" if abs(last.value) > abs(first.value) else "shrinks"
    return "not resolved"


def extrapolated(outcomes: Sequence[Outcome], index: int) -> tuple[Ahead | None, Ahead | None]:
    """A comparison's difference further on, with one irreducible loss and with two; None where no law is fitted."""
    comparison = outcomes[0].study.claim.comparisons[index]
    plain = comparison.against and not comparison.other and not comparison.beyond
    if comparison.measure != FITTED or not plain or len(outcomes) < FEWEST:
        return None, None

    flops, sides = [], []
    for outcome in outcomes:
        measured = outcome.study.measured(outcome.pairs)
        arms = (comparison.arm, comparison.against)
        both = sorted(measured[arms[0]].keys() & measured[arms[1]].keys())
        losses = [[measured[arm][pair].get(FITTED, math.inf) for pair in both] for arm in arms]
        if not both or not all(math.isfinite(loss) for side in losses for loss in side):
            return None, None
        flops.append([outcome.study.arm(arm).flops for arm in arms])
        if not min(flops[-1]) > 0:
            return None, None
        sides.append([np.array(side) for side in losses])
    at, (arm_losses, against_losses) = np.array(flops).T, zip(*sides, strict=True)
    tied, untied = (ahead(at, arm_losses, against_losses, one) for one in (True, False))
    return tied, untied


def disagree(tied: Ahead | None, untied: Ahead | None) -> bool:
    return tied is not None and untied is not None and tied.sign != untied.sign


def interval(expected: Ahead | None) -> str:
    if expected is None:
        return MISSING
    ends = f"{signed(expected.low)} to {signed(expected.high)}"
    return f"{signed(expected.value)}<br><small>{ends}<br>misfit {expected.law.error:.4f}</small>"


def figure(outcomes: Sequence[Outcome]) -> str:
    """Each prediction's difference against compute, where it is in bits per byte."""
    lines: dict[int, list[tuple[list[float], list[float]]]] = {}
    legend = []
    for index, comparison in enumerate(outcomes[0].study.claim.comparisons):
        values = [outcome.decision.findings[index].estimate.value for outcome in outcomes]
        if comparison.measure == FITTED and all(map(math.isfinite, values)):
            lines[index] = [([flops_of(outcome) for outcome in outcomes], values)]
            legend.append(key(f"run-{index % RUN_COLORS}", text(comparison.sentence)))
    if not lines:
        return ""
    svg = drawn.lines(lines, "sizes", "FLOPs of a run", f"difference, {unit(FITTED)}", log=True)
    return f"<figure>{svg}<figcaption>{''.join(legend)}</figcaption></figure>"
