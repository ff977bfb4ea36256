"""Verdicts and numbers of the lab in words, safe to put into HTML."""

import math

from isoflop.lab.claim import COSTS_TO
from isoflop.lab.outcome import Outcome
from isoflop.lab.verdict import EQUIVALENT, REFUTED, SUPPORTED, UNDECIDED, Finding
from isoflop.report import words

# verdict -> the CSS variable of its colour, and how it is said
JUDGEMENTS = {
    SUPPORTED: ("good", "Supported"),
    REFUTED: ("bad", "Refuted"),
    EQUIVALENT: ("train", "No difference worth knowing"),
    UNDECIDED: ("muted", "Undecided"),
}
SENTENCES = {
    SUPPORTED: "Supported: {}",
    REFUTED: "Refuted: it is not so that {}",
    EQUIVALENT: "No difference worth knowing as to whether {}",
    UNDECIDED: "Undecided whether {}",
}
UNITS = {
    "bits_per_byte": "bits per byte, held-out",
    "nats_per_token": "nats per token, held-out",
    "excess_over_unigram": "bits per byte above word frequencies",
    "failed": "share of runs that fail",
    "first_over_last": "log10 of gradient in the first layer over the last",
    "gradient_per_layer": "log10 of the gradient, per layer",
    "first_gradient_by_depth": "log10 of the first layer's gradient, per layer added",
    "last_gradient_by_depth": "slope of log gradient on log depth",
    "nonlinearity": "log10 of the departure from linearity",
    "nonlinearity_whole": "log10 of the departure from linearity",
    "leak_in_training": "log10 of what the future changes, in training",
    "leak_in_evaluation": "log10 of what the future changes, in evaluation",
    "exact_match": "share of outputs that are right",
    "unit_error_rate": "errors per unit",
    **{name: f"log2 of {name.removesuffix('_to')} to the target" for name in COSTS_TO},
}


def verdict_line(outcome: Outcome) -> str:
    """The verdict in one line: what was found, how sure, with how much."""
    decision = outcome.decision
    finding, more = deciding(outcome)
    said = (
        f"Supported: {more}{finding.comparison.sentence}"
        if more
        else SENTENCES[decision.verdict].format(finding.comparison.sentence)
    )
    return f"{said}: {measured_words(finding)}."


def deciding(outcome: Outcome) -> tuple[Finding, str]:
    """The first of the comparisons that made the verdict what it is; and, where several had to hold, that they do."""
    findings, verdict = outcome.decision.findings, outcome.decision.verdict
    count_of = len(findings)
    more = "both predictions hold; " if count_of == 2 else f"all {count_of} predictions hold; "
    first = next(one for one in findings if one.verdict == verdict)
    return first, more if verdict == SUPPORTED and count_of > 1 else ""


def coloured(verdict: str, tag: str = "b", extra: str = "") -> str:
    """The verdict as HTML, in its colour."""
    color, said = JUDGEMENTS[verdict]
    return f'<{tag} style="color:var(--{color});{extra}">{said}</{tag}>'


def measured_words(finding: Finding) -> str:
    """+0.052 (0.041 to 0.063), 8 pairs"""
    one = finding.estimate
    if not one.pairs:
        return "nothing measured yet"
    value = signed(one.value)
    interval = f" ({signed(one.low)} to {signed(one.high)})" if one.pairs > 1 else ""
    return f"{value}{interval}, {one.pairs} pair{'s' if one.pairs > 1 else ''}"


def signed(value: float) -> str:
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    if math.isnan(value):
        return words.MISSING
    digits = 3 if abs(value) < 10 else 1
    return f"{value:+.{digits}f}".replace("-", "−")


def plain(value: float) -> str:
    """As `signed`, without a plus."""
    return signed(value).removeprefix("+")


def p_words(p: float) -> str:
    return "&lt; 0.0001" if p < 1e-4 else f"{p:.2g}"


def loss_words(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "diverged"
