"""A page per claim: static HTML in the style of a run's report, for a student and for a reviewer.

    statement · verdict · figure and table that decide · curves · arms     (here)
    held equal · learning rates · rule and noise · limits · cost           (conditions.py)

What comes from a claim's file goes through words.text.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from isoflop.files import disk_errors, write_text
from isoflop.lab import drawn, stats
from isoflop.lab.claim import COSTS_TO
from isoflop.lab.conditions import cost, held_equal, how_decided, how_far, rates
from isoflop.lab.outcome import Outcome
from isoflop.lab.sizes import from_size_to_size
from isoflop.lab.verdict import UNDECIDED, Finding
from isoflop.lab.wording import (
    CONSTANT,
    EXPLAINED,
    JUDGEMENTS,
    TESTS,
    amount,
    average_words,
    axis_words,
    coloured,
    compared_words,
    equal_words,
    interval_words,
    judgement,
    p_words,
    plain,
    progress,
    signed,
    unit,
    verdict_line,
)
from isoflop.report import words
from isoflop.report.style import document, key, section, table
from isoflop.report.words import count, duration, power, text

LARGE = "font-size:1.7rem;font-weight:650;line-height:1.3;margin:18px 0 6px"


def write_page(outcome: Outcome, others: Sequence[Outcome] = ()) -> Path:
    """Write LAB/NAME/report.html.

    Args:
        others: all outcomes of the folder; those of the claim's other sizes are shown next to it.

    Raises:
        UserError: if it cannot be written.
    """
    study = outcome.study
    path = study.store.folder / study.claim.name / "report.html"
    with disk_errors("the report"):
        write_text(path, page(outcome, others))
    return path


def page(outcome: Outcome, others: Sequence[Outcome] = ()) -> str:
    claim = outcome.study.claim
    parts = [
        header(outcome),
        predictions(outcome) if outcome.finished or outcome.pairs else not_yet(outcome),
        from_size_to_size(claim, others),
        curves(outcome),
        arms(outcome),
        held_equal(outcome),
        rates(outcome),
        how_decided(outcome),
        how_far(outcome),
        cost(outcome),
        "<footer>Made by isoflop lab. Held-out text is never trained on; FLOPs are 6 N D.</footer>",
    ]
    return document(f"{claim.name}: isoflop lab", "\n".join(part for part in parts if part))


def header(outcome: Outcome) -> str:
    claim = outcome.study.claim
    return (
        f'<header>\n<div class="top"><a href="../index.html" style="color:inherit">isoflop lab</a> / '
        f"<h1>{text(claim.name)}</h1></div>\n"
        f'<p class="story" style="{LARGE}">“{text(claim.statement)}”</p>\n'
        f"{coloured(judgement(outcome), 'p', 'font-size:2rem;font-weight:650;margin:14px 0 6px')}\n"
        f'<p class="story">{text(verdict_line(outcome))}</p>\n{settle(outcome)}{tiles(outcome)}'
        f'<p class="lead" style="margin-top:22px"><b>Question:</b> {text(claim.question)} '
        f"<b>Prediction:</b> {text(claim.prediction)}</p>\n</header>"
    )


def settle(outcome: Outcome) -> str:
    """What would settle an undecided verdict."""
    if outcome.decision.verdict != UNDECIDED or not outcome.finished:
        return ""
    wanted = outcome.settle()
    if not outcome.study.claim.open_ended:
        return "<p>Each pair stands for a published case; only further publications would settle it.</p>"
    if wanted is None:
        return "<p>Too little was measured to say how many pairs would settle it.</p>"
    return (
        f"<p>To settle it, about {count(wanted['pairs'])} pairs are needed, by how these scatter: "
        f"{count(wanted['more_pairs'])} more, {duration(60 * wanted['process_minutes'])} of one process.</p>"
    )


def tiles(outcome: Outcome) -> str:
    """The numbers that the verdict rests on."""
    if not outcome.pairs:
        return ""
    claim, finding = outcome.study.claim, outcome.deciding
    one, spent = finding.measured, outcome.study.cost(outcome.complete)
    runs = sum(part["runs"] for part in spent.values())
    comparison = finding.comparison
    interval = f"{interval_words(finding)}, " if one.pairs > 1 else ""
    equal = f", equal {text(equal_words(claim.setup.equal))}" if claim.setup.equal else ""
    spent_error = outcome.decision.error_spent
    shown = [
        (
            "measured" if comparison.fixed else "difference",
            amount(finding, one.value),
            f"{interval}{text(unit(comparison.measure))}{compared_words(comparison)}",
        ),
        ("worth knowing from", f"{comparison.smallest:g}", "set before the first run"),
        ("pairs", f"{outcome.pairs}", f"of one seed each{equal}; wrong with a chance of {spent_error:g} at most"),
        ("cost", duration(sum(part["seconds"] for part in spent.values())), f"of one process, {runs} runs"),
    ]
    found = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{note}</dd></div>'
        for name, value, note in shown
    )
    return f'<dl class="tiles">{found}</dl>'


def not_yet(outcome: Outcome) -> str:
    """In place of the result, while the rule does not allow looking."""
    planned = f"all {outcome.planned} pairs" if outcome.planned else "all pairs"
    lead = (
        f"Nothing is shown yet: {progress(outcome)}. The rule of this claim is one look at {planned}; an earlier look "
        "would make a wrong verdict more likely."
        if outcome.study.claim.setup.rule == "fixed"
        else f"Nothing is shown yet: {progress(outcome)}. An interval needs two pairs."
    )
    return section("What was found", lead, "")


def predictions(outcome: Outcome) -> str:
    """The figure and the table that decide: one row for each prediction."""
    decision, claim = outcome.decision, outcome.study.claim
    by_axis: dict[str, list[Finding]] = {}
    for finding in decision.findings:
        by_axis.setdefault(axis_words(finding.comparison), []).append(finding)
    figures = ""
    for index, (axis, findings) in enumerate(by_axis.items()):
        if any(finding.differences for finding in findings):
            labels = [finding.comparison.sentence for finding in findings]
            figures += f"<figure>{drawn.differences(findings, labels, f'differences-{index}', axis)}</figure>"
    rows = [found_row(finding, finished=outcome.finished) for finding in decision.findings]
    level = f"{100 * (1 - claim.setup.alpha):g} % interval"
    heads = ["prediction", "verdict", "difference", level, "worth knowing", "p (Holm)", "pairs"]
    key_words = (
        "<figcaption>Small dots: the differences of single pairs, two runs that share their seed. Large dot and bar: "
        f"{average_words(decision.findings)} and its interval. Grey band: what counts as no difference.</figcaption>"
    )
    measures = dict.fromkeys(finding.comparison.measure for finding in decision.findings)
    lead = " ".join(EXPLAINED[measure] for measure in measures if measure in EXPLAINED)
    return section("What was found", lead, figures + key_words + table(heads, rows, {2, 3, 4, 5, 6}))


def found_row(finding: Finding, finished: bool) -> list[str]:
    c, one = finding.comparison, finding.estimate
    lost = ""
    if any(finding.lost):
        lost = f"<br><small>runs without a value: {finding.lost[0]} and {finding.lost[1]}</small>"
    aside = "<br><small>told aside: it does not decide the verdict</small>" if c.aside else ""
    if finding.left_out:
        lost += f"<br><small>pairs left out, since a run diverged: {finding.left_out}</small>"
    checks = [f"bootstrap {signed(finding.bootstrap[0])} to {signed(finding.bootstrap[1])}"] if one.pairs > 1 else []
    checks += [f"sign-flip p {p_words(finding.signs)}"] if finding.signs is not None else []
    checks = [] if finding.constant else checks  # they tell how far chance goes
    ends = CONSTANT if finding.constant else f"{signed(one.low)} to {signed(one.high)}"
    own = "<br><small>the median</small>" if TESTS[one.test][1] == "median" else ""
    if c.fixed and c.value and one.pairs:
        own += f"<br><small>{amount(finding, finding.measured.value)}{compared_words(c)}</small>"
    return [
        f"{text(c.sentence)}{aside}{lost}",
        coloured(JUDGEMENTS[finding.verdict]) if finished else words.MISSING,
        f"{signed(one.value)}{own}",
        f"{ends}<br><small>{'; '.join(checks)}</small>",
        f"{c.smallest:g}" + (f"<br><small>margin {c.margin:g}</small>" if c.margin else ""),
        p_words(finding.p),
        f"{one.pairs}",
    ]


def curves(outcome: Outcome) -> str:
    """Held-out loss along the runs, or what the claim's figure names."""
    study, wanted = outcome.study, outcome.study.claim.figure
    x, y = (wanted.x, wanted.y) if wanted.x else ("tokens", "heldout")
    x_words = wanted.x_words or {"tokens": "tokens read"}.get(x, x)
    y_words = wanted.y_words or {"heldout": "bits per byte, held-out"}.get(y, y)
    found, legend = {}, []
    for index, arm in enumerate(study.arms):
        runs = [
            (row.lists[x], row.lists[y])
            for row in study.rows(arm.name, outcome.pairs)
            if x in row.lists and y in row.lists
        ]
        if any(points for points, _ in runs):
            found[index] = runs
            legend.append(key(f"run-{index % drawn.RUN_COLORS}", text(study.claim.words(arm.name))))
    if not found:
        return ""
    svg = drawn.lines(found, "curves", x_words, y_words, wanted.log)
    lead = "Thin: single runs. Thick: the mean over the seeds of an arm."
    return section("The runs", lead, f"<figure>{svg}<figcaption>{''.join(legend)}</figcaption></figure>")


def arms(outcome: Outcome) -> str:
    """What each arm is, and what it measured: mean with its interval over seeds."""
    study = outcome.study
    measures = list(dict.fromkeys(c.measure for c in study.claim.comparisons if c.measure not in COSTS_TO))[:3]
    rows = []
    for arm in study.arms:
        cells = []
        for measure in measures:
            values = [row.measures.get(measure, math.nan) for row in study.rows(arm.name, outcome.pairs)]
            known = [value for value in values if math.isfinite(value)]
            one = stats.paired_t(known, study.claim.setup.alpha)
            ends = CONSTANT if one.low == one.high else f"{plain(one.low)} to {plain(one.high)}"
            spread = f"<br><small>{ends}</small>" if len(known) > 1 else ""
            lost = len(values) - len(known)
            without = f"<br><small>{lost} of {len(values)} without a value</small>" if lost else ""
            cells.append(f"{plain(one.value) if known else words.MISSING}{spread}{without}")
        spec = study.claim.arms[arm.name]
        trained_on = f"trained on {', '.join(spec.sources)}" if spec.sources else ""
        sets = " ".join((*spec.set, *([trained_on] if trained_on else []))) or "as the base"
        if any(one.size for one in study.arms):
            cells.append(count(arm.size) if arm.size else words.MISSING)
        if study.trained:
            cells.append(count(arm.tokens) if arm.name in study.trained else words.MISSING)
            cells.append(power(arm.flops) if arm.flops else words.MISSING)
        setting = f'<code style="white-space:normal">{text(sets)}</code>'
        rows.append([f"<b>{text(study.claim.words(arm.name))}</b><br>{setting}", *cells])
    heads = ["arm", *(text(name.replace("_", " ")) for name in measures)]
    heads += ["parameters"] if any(one.size for one in study.arms) else []
    heads += ["tokens", "FLOPs"] if study.trained else []
    lead = "Means over the seeds, each arm by itself. The verdict rests on the differences between arms, pair by pair."
    return section("Arms", lead if outcome.pairs else "", table(heads, rows, set(range(1, len(heads)))))
