"""Verdicts and numbers of the lab in words, safe to put into HTML."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.lab.claim import COSTS_TO, Comparison
from isoflop.lab.outcome import Outcome
from isoflop.lab.procedures.across import ON
from isoflop.lab.verdict import EQUIVALENT, REFUTED, SUPPORTED, UNDECIDED, Finding
from isoflop.report import words
from isoflop.values import counted

# verdict -> the CSS variable of its colour, and its name
JUDGEMENTS = {
    SUPPORTED: ("good", "Supported"),
    REFUTED: ("bad", "Refuted"),
    EQUIVALENT: ("train", "No difference worth knowing"),
    UNDECIDED: ("muted", "Undecided"),
}
# a test of stats.py or anytime.py -> its name, what it is about, and what shows that there is no difference
TESTS = {
    "t": ("a paired t-test", "mean", "two one-sided tests put the mean inside the band"),
    "sign": ("a sign test", "median", "the interval of the median lies inside the band"),
    "anytime t": ("an anytime-valid t-test", "mean", "the interval of the mean lies inside the band"),
    "anytime sign": ("an anytime-valid sign test", "median", "the interval of the median lies inside the band"),
}
CONSTANT = "the same in every pair"  # in place of an interval, where nothing depends on the seed
UNFINISHED = ("muted", "Not finished")
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
    "covariate_shift": "log10 of the relative change of a block's gradient",
    "log10_ratio": "log10 of the ratio of training compute",
    **{name: f"log2 of {name.removesuffix('_to')} to the target" for name in COSTS_TO},
}
# What a reader who meets a measure for the first time has to know.
EXPLAINED = {
    "bits_per_byte": "Bits per byte: what the model needs on average to encode a byte of text that it was not trained "
    "on. Lower is better; it does not depend on the vocabulary.",
    "nats_per_token": "Nats per token: the cross-entropy of held-out text. Lower is better.",
    "covariate_shift": "Internal covariate shift: how much the gradient of a block changes when the layers below it "
    "take their update and it does not. 0 on this scale: by its own length; −1: by a tenth of that.",
    "log10_ratio": "2 is a factor of 100, 1 a factor of 10.",
    "failed": "A run fails if it diverges, or learns no more than how frequent each token is.",
    **dict.fromkeys(COSTS_TO, "On a log2 scale, −1 is half the cost. A run that never reaches the target is infinite."),
}


def verdict_line(outcome: Outcome) -> str:
    """The verdict in one line: what was found, how sure, with how much. Of an unfinished claim how far it is."""
    finding, more = deciding(outcome)
    if not outcome.finished:
        seen = f" So far {finding.comparison.sentence}: {measured_words(finding)}." if outcome.pairs else ""
        return f"Not finished: {progress(outcome)}.{seen}"
    decision = outcome.decision
    said = (
        f"Supported: {more}{finding.comparison.sentence}"
        if more
        else SENTENCES[decision.verdict].format(finding.comparison.sentence)
    )
    return f"{said}: {measured_words(finding)}."


def progress(outcome: Outcome) -> str:
    """How far an unfinished claim is."""
    if not outcome.planned:
        return "learning rates or noise are being measured"
    return f"{outcome.complete} of {outcome.planned} pairs"


def versions_words(versions: Sequence[Mapping[str, Any]]) -> tuple[list[str], str]:
    """Each version that runs were made with in words, and a warning if they differ; else empty."""
    said = [
        f"isoflop {one['isoflop']} (source {one['source']}), torch {one['torch']}: {counted(one['runs'], 'run')}"
        for one in versions
    ]
    warning = (
        f"warning: its runs were made with {len(said)} versions of isoflop or torch, and a part of a difference may be "
        "between those; in a new folder (--out) all are run again"
    )
    return said, warning if len(said) > 1 else ""


def deciding(outcome: Outcome) -> tuple[Finding, str]:
    """The first of the comparisons that made the verdict what it is; and, where several had to hold, that they do."""
    verdict = outcome.decision.verdict
    count_of = sum(not finding.comparison.aside for finding in outcome.decision.findings)
    more = "both predictions hold; " if count_of == 2 else f"all {count_of} predictions hold; "
    return outcome.deciding, more if verdict == SUPPORTED and count_of > 1 else ""


def judgement(outcome: Outcome) -> tuple[str, str]:
    """The CSS variable of a verdict's colour, and its name."""
    return JUDGEMENTS[outcome.decision.verdict] if outcome.finished else UNFINISHED


def coloured(judged: tuple[str, str], tag: str = "b", extra: str = "") -> str:
    """A verdict as HTML, in its colour."""
    color, said = judged
    return f'<{tag} style="color:var(--{color});{extra}">{said}</{tag}>'


def unit(measure: str) -> str:
    """The unit of a measure, in words."""
    if measure.startswith(ON):
        return f"bits per byte on {measure.removeprefix(ON)}, held-out"
    return UNITS.get(measure, measure.replace("_", " "))


def measured_words(finding: Finding) -> str:
    """+0.052 bits per byte (+0.041 to +0.063), 8 pairs. Of a comparison with a number what was measured itself, next to
    that number."""
    one, comparison = finding.measured, finding.comparison
    if not one.pairs:
        return "nothing measured yet"
    value = f"{amount(finding, one.value)} {unit(comparison.measure).partition(',')[0]}"
    interval = f" ({interval_words(finding)})" if one.pairs > 1 else ""
    return f"{value}{interval}{compared_words(comparison)}, {one.pairs} pair{'s' if one.pairs > 1 else ''}"


def amount(finding: Finding, value: float) -> str:
    """A difference with its sign; what is compared with a number without a plus."""
    return plain(value) if finding.comparison.fixed else signed(value)


def interval_words(finding: Finding) -> str:
    """The interval of what was measured."""
    if finding.constant:
        return CONSTANT
    return f"{amount(finding, finding.measured.low)} to {amount(finding, finding.measured.high)}"


def compared_words(comparison: Comparison) -> str:
    """, compared with −10: the number that a comparison is with; "" where it is with another run."""
    return f", compared with {minus(comparison.value)}" if comparison.fixed else ""


def minus(value: float) -> str:
    """A number as a claim's file has it, with a minus that is one."""
    return f"{value:g}".replace("-", "−")


def average_words(findings: Sequence[Finding]) -> str:
    """What stands for all pairs: the mean difference, or the median where a sign test decides."""
    kinds = dict.fromkeys(TESTS[finding.estimate.test][1] for finding in findings)
    if len(kinds) > 1:
        return "the mean difference (the median where a sign test decided)"
    return f"the {next(iter(kinds), 'mean')} difference"


def axis_words(comparison: Comparison) -> str:
    """What the axis of a comparison's differences says."""
    said = unit(comparison.measure)
    return f"{said}: difference from {minus(comparison.value)}" if comparison.fixed else f"difference, {said}"


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


def equal_words(names: Sequence[str]) -> str:
    """What is held equal: parameters and FLOPs"""
    return " and ".join({"flops": "FLOPs"}.get(name, name) for name in names)


def sentence(said: str) -> str:
    """A message of the command line as a sentence of the page."""
    return f"{said[:1].upper()}{said[1:]}."


def bold(inner: str, chosen: bool) -> str:
    """HTML, in bold if it was chosen."""
    return f"<b>{inner}</b>" if chosen else inner


def items(said: Sequence[str]) -> str:
    """Sentences of HTML, a paragraph each."""
    return "".join(f'<p style="max-width:75ch;margin:6px 0">{one}</p>' for one in said)
