"""A page per claim: static HTML in the style of a run's report, for a student and for a reviewer.

What comes from a claim's file goes through words.text.
"""

import math
from pathlib import Path

from isoflop.files import disk_errors, write_text
from isoflop.lab import drawn, stats
from isoflop.lab.claim import COSTS_TO
from isoflop.lab.outcome import Outcome
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.lab.verdict import UNDECIDED, Finding
from isoflop.lab.wording import UNITS, coloured, loss_words, p_words, plain, signed, verdict_line
from isoflop.report import words
from isoflop.report.style import document, key, section, table
from isoflop.report.words import count, duration, power, text


def write_page(outcome: Outcome) -> Path:
    """Write LAB/NAME/report.html.

    Raises:
        UserError: if it cannot be written.
    """
    study = outcome.study
    path = study.store.folder / study.claim.name / "report.html"
    with disk_errors("the report"):
        write_text(path, page(outcome))
    return path


def page(outcome: Outcome) -> str:
    claim = outcome.study.claim
    parts = [
        header(outcome),
        predictions(outcome),
        curves(outcome),
        arms(outcome),
        held_equal(outcome),
        rates(outcome),
        cost(outcome),
        "<footer>Made by isoflop lab. Held-out text is never trained on; FLOPs as 6 N D.</footer>",
    ]
    return document(f"{claim.name}: isoflop lab", "\n".join(part for part in parts if part))


def header(outcome: Outcome) -> str:
    claim, decision = outcome.study.claim, outcome.decision
    settle = ""
    if decision.verdict == UNDECIDED:
        needs = decision.needs
        settle = (
            f"<p>To settle it, about {count(needs)} pairs would be needed, by how these scatter.</p>"
            if needs < stats.MOST_PAIRS
            else "<p>Too little was measured to say how many pairs would settle it.</p>"
        )
    return (
        f'<header>\n<div class="top"><h1>{text(claim.name)}</h1></div>\n'
        f'<p class="story" style="font-size:1.7rem;font-weight:650;line-height:1.3;margin:18px 0 6px">'
        f"“{text(claim.statement)}”</p>\n"
        f"{coloured(decision.verdict, 'p', 'font-size:2rem;font-weight:650;margin:14px 0 6px')}\n"
        f'<p class="story">{text(verdict_line(outcome))}</p>\n{settle}'
        f'<p class="lead" style="margin-top:14px"><b>Asked:</b> {text(claim.question)} '
        f"<b>Expected:</b> {text(claim.prediction)}</p>\n</header>"
    )


def predictions(outcome: Outcome) -> str:
    """The figure and the table that decide: one row for each prediction."""
    decision, claim = outcome.decision, outcome.study.claim
    figures = ""
    by_measure: dict[str, list[Finding]] = {}
    for finding in decision.findings:
        by_measure.setdefault(finding.comparison.measure, []).append(finding)
    for index, (measure, findings) in enumerate(by_measure.items()):
        if not any(finding.differences for finding in findings):
            continue
        labels = [finding.comparison.sentence for finding in findings]
        svg = drawn.differences(findings, labels, f"differences-{index}", UNITS.get(measure, measure.replace("_", " ")))
        figures += f"<figure>{svg}</figure>"
    rows = []
    for finding in decision.findings:
        c, one = finding.comparison, finding.estimate
        lost = (
            f"<br><small>runs without a value: {finding.lost[0]} and {finding.lost[1]}</small>"
            if any(finding.lost)
            else ""
        )
        checks = (
            [f"bootstrap {signed(finding.bootstrap[0])} to {signed(finding.bootstrap[1])}"] if one.pairs > 1 else []
        )
        checks += [f"sign-flip p {p_words(finding.signs)}"] if finding.signs is not None else []
        rows.append(
            [
                f"{text(c.sentence)}{lost}",
                coloured(finding.verdict),
                signed(one.value),
                f"{signed(one.low)} to {signed(one.high)}<br><small>{'; '.join(checks)}</small>",
                f"{c.smallest:g}" + (f"<br><small>margin {c.margin:g}</small>" if c.margin else ""),
                p_words(finding.p),
                f"{one.pairs}",
            ]
        )
    level = f"{100 * (1 - claim.setup.alpha):g} % interval"
    heads = ["prediction", "verdict", "difference", level, "worth knowing", "p (Holm)", "pairs"]
    key_words = (
        "<figcaption>Small dots: pairs of runs with the same order of the data. Bar: the mean difference with its "
        "interval. Grey band: what counts as no difference.</figcaption>"
    )
    lead = rule_words(outcome)
    return section("What was found", lead, figures + key_words + table(heads, rows, {2, 3, 4, 5, 6}))


def rule_words(outcome: Outcome) -> str:
    setup, decision = outcome.study.claim.setup, outcome.decision
    looks = "after every pair, by a test that allows it" if setup.rule == "anytime" else "once"
    if decision.error_spent > setup.alpha:
        looks += ", and again with more pairs by a test that allows it"
    family = len(decision.findings)
    holm = f", corrected by Holm over {family} predictions" if family > 1 else ""
    return (
        f"The rule was fixed before the first run: paired t-test{holm}; no difference where two one-sided tests put it "
        f"inside the band. It was looked at {looks}; the chance of a wrong verdict adds up to {decision.error_spent:g}."
    )


def curves(outcome: Outcome) -> str:
    """Held-out loss along the runs, or what the claim wants to be drawn."""
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
    return section("The runs", "", f"<figure>{svg}<figcaption>{''.join(legend)}</figcaption></figure>")


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
            spread = f"<br><small>{plain(one.low)} to {plain(one.high)}</small>" if len(known) > 1 else ""
            cells.append(f"{plain(one.value)}{spread}" if known else words.MISSING)
        sets = " ".join((*study.claim.arms[arm.name].set,)) or "as the base"
        if any(one.size for one in study.arms):
            cells.append(count(arm.size) if arm.size else words.MISSING)
        if study.trained:
            cells.append(count(arm.config.tokens) if arm.name in study.trained else words.MISSING)
            cells.append(power(arm.flops) if arm.flops else words.MISSING)
        rows.append([f"<b>{text(study.claim.words(arm.name))}</b><br><code>{text(sets)}</code>", *cells])
    heads = ["arm", *(text(name.replace("_", " ")) for name in measures)]
    heads += ["parameters"] if any(one.size for one in study.arms) else []
    heads += ["tokens", "FLOPs"] if study.trained else []
    return section("Arms", "Means over seeds, with their intervals.", table(heads, rows, set(range(1, len(heads)))))


def held_equal(outcome: Outcome) -> str:
    claim = outcome.study.claim
    equal = ", ".join(claim.setup.equal)
    said = [f"Held equal: {text(equal)}." if equal else "Nothing is held equal but seeds and data."]
    first = outcome.study.arms[0].config
    builds = any(PROCEDURES[claim.procedure(arm)].builds for arm in claim.arms)
    if builds:
        model = first.model
        said.append(
            f"The base has {model.layers} layer{'s' if model.layers > 1 else ''} of width {model.d_model}, context "
            f"{model.context} and "
            f"{model.vocab_size:,} ids."
        )
    if claim.trains:
        said.append(
            "Arms of a pair read the same data in the same order where their batches are alike. The result is one of "
            "this size; another size may give another verdict."
        )
    if claim.notes:
        said.append(text(claim.notes))
    literature = "".join(f"<li>{text(one)}</li>" for one in claim.literature)
    body = "".join(f"<p>{one}</p>" for one in said) + (
        f"<h3>Literature</h3><ul>{literature}</ul>" if literature else ""
    )
    return section("How far it goes", "", body)


def rates(outcome: Outcome) -> str:
    """Losses at the rates that were tried, arm by arm."""
    study = outcome.study
    tried = {arm: study.tried(arm) for arm in study.trained}
    if not any(tried.values()):
        return ""
    factors = sorted({factor for found in tried.values() for factor in found})
    rows = []
    for arm, found in tried.items():
        chosen = study.factors.get(arm)
        cells = [
            words.MISSING if factor not in found else bold(loss_words(found[factor]), factor == chosen)
            for factor in factors
        ]
        rows.append([text(study.claim.words(arm)), *cells, "yes" if study.bracketed(arm) else "<b>no</b>"])
    heads = ["arm", *(f"× {factor:g}" for factor in factors), "bracketed"]
    lead = "Held-out bits per byte of one run at each factor of the planned learning rates, with a seed of its own."
    return section("Learning rates", lead, table(heads, rows, set(range(1, len(heads)))))


def bold(inner: str, chosen: bool) -> str:
    return f"<b>{inner}</b>" if chosen else inner


def cost(outcome: Outcome) -> str:
    study, claim = outcome.study, outcome.study.claim
    spent = study.cost(outcome.pairs)
    rows = [
        [name, f"{part['runs']}", duration(part["seconds"])]
        for name, part in (("pairs", spent["pairs"]), ("rates", spent["rates"]), ("noise (A/A)", spent["noise"]))
        if part["runs"]
    ]
    body = table(["", "runs", "seconds of one process"], rows, {1, 2})
    earlier = sum(
        row.time < outcome.fixed for arm in study.arms for row in study.rows(arm.name, outcome.pairs) if row.time
    )
    versions = len({one.hash for one in study.store.versions(claim.name)})
    said = [f"Claim {claim.hash[:12]}, fixed {words.moment(outcome.fixed)} UTC, before its first run."]
    if versions > 1:
        said.append(f"{versions} versions of this claim were fixed in this folder; this is one of them.")
    if earlier:
        said.append(f"{earlier} of its runs were on record before, from another claim that has the same.")
    name = claim.name.removesuffix("-full")
    full = " --full" if claim.name.endswith("-full") else ""
    command = f"isoflop lab run {name}{full}" + "".join(f" {source}" for source in claim.setup.sources)
    body += "".join(f"<p>{one}</p>" for one in said) + f"<h3>To repeat it</h3><pre>{text(command)}</pre>"
    return section("Cost", "", body)
