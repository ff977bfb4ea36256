"""The second half of a claim's page: what was held equal, how it was decided, how far it goes, what it cost."""

import math

from isoflop.files import to_json
from isoflop.lab.outcome import Outcome
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.lab.study import NOISE_PAIRS
from isoflop.lab.wording import TESTS, bold, equal_words, items, loss_words, plain, sentence, unit, versions_words
from isoflop.report import words
from isoflop.report.style import section, table
from isoflop.report.words import duration, text


def held_equal(outcome: Outcome) -> str:
    """What arms share, and what each does not."""
    study, claim = outcome.study, outcome.study.claim
    said = [f"Held equal: {text(equal_words(claim.setup.equal) or 'seeds')}."]
    first = study.arms[0].config
    if any(PROCEDURES[claim.procedure(arm)].builds for arm in claim.arms):
        model = first.model
        layers = f"{model.layers} layer{'s' if model.layers > 1 else ''}"
        said.append(
            f"The first arm has {layers} of width {model.d_model}, context {model.context} and {model.vocab_size:,} "
            "ids."
        )
    if study.trained:
        unlike = [f"{text(claim.words(arm.name))}: {one}." for arm in study.arms if (one := study.unlike(arm.name))]
        said.append(f"The runs of a pair read the same text in the same order{', but for:' if unlike else '.'}")
        said += unlike
    return section("What was held equal", "", items(said))


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
    lead = (
        "Held-out bits per byte of one run at each factor of the planned learning rates, with a seed that no pair has. "
        "Bracketed: the best factor lies between two worse ones."
    )
    return section("Learning rates", lead, table(heads, rows, set(range(1, len(heads)))))


def how_decided(outcome: Outcome) -> str:
    """The rule, the noise that set the number of pairs, and the looks."""
    study, setup, decision = outcome.study, outcome.study.claim.setup, outcome.decision
    looks = "after every pair, by a test that allows it" if setup.rule == "anytime" else "once"
    if decision.error_spent > setup.alpha:
        looks += ", and again with more pairs by a test that allows it"
    family = len(decision.findings)
    holm = f", corrected by Holm over {family} predictions" if family > 1 else ""
    said = [
        f"The rule was fixed before the first run: {tests(outcome)}{holm}. The pairs are looked at {looks}; the chance "
        f"of a wrong verdict adds up to {decision.error_spent:g} at most."
    ]
    measures = dict.fromkeys(comparison.measure for comparison in study.claim.comparisons)
    plans = study.store.notes(study.claim, "plan")
    noise = plans[-1].get("noise") if plans else None
    if isinstance(noise, dict):
        for measure in measures:
            value = noise.get(measure)
            if isinstance(value, (int, float)) and math.isfinite(value):
                said.append(
                    f"Noise: two runs that differ in nothing but their first weights differ by {plain(float(value))} "
                    f"{text(unit(measure))} (standard deviation, {NOISE_PAIRS} A/A pairs). By its upper limit, the "
                    f"smallest effect that is asked about needs {text(plans[-1].get('needed'))} pairs; "
                    f"{text(plans[-1].get('pairs'))} were planned."
                )
    said += [
        f"Looked at {words.moment(look.get('time'))} UTC, {text(look.get('pairs'))} pairs: {text(look.get('verdict'))}."
        for look in study.store.notes(study.claim, "verdict")
    ]
    return section("How it was decided", "", items(said))


def tests(outcome: Outcome) -> str:
    """The tests that decided, as HTML; of several each with its predictions. Signs and the median stand in for the mean
    where a difference is infinite, or could be."""
    used: dict[str, list[str]] = {}
    for finding in outcome.decision.findings:
        used.setdefault(finding.estimate.test, []).append(f"“{text(finding.comparison.sentence)}”")
    told = []
    for test, sentences in used.items():
        name, _, none = TESTS[test]
        of = f" of {' and '.join(sentences)}" if len(used) > 1 else ""
        told.append(f"{name}{of}, and no difference where {none}")
    why = " (signs, where a run has no finite value or costs are compared)"
    return "; ".join(told) + (why if any(TESTS[test][1] == "median" for test in used) else "")


def how_far(outcome: Outcome) -> str:
    claim = outcome.study.claim
    said = []
    if claim.trains:
        said.append("The verdict holds for this size, this text and this budget; another size may give another one.")
    if claim.notes:
        said.append(text(claim.notes))
    literature = "".join(f"<li>{text(one)}</li>" for one in claim.literature)
    body = items(said) + (f"<h3>Literature</h3><ul>{literature}</ul>" if literature else "")
    return section("How far it goes", "", body)


def cost(outcome: Outcome) -> str:
    """What it took, where and when it was run, and the command to repeat it."""
    study, claim = outcome.study, outcome.study.claim
    spent = study.cost(outcome.complete)
    rows = [
        [name, f"{part['runs']}", duration(part["seconds"])]
        for name, part in (("pairs", spent["pairs"]), ("rates", spent["rates"]), ("noise (A/A)", spent["noise"]))
        if part["runs"]
    ]
    runs = [row for arm in study.arms for row in study.rows(arm.name, outcome.complete)]
    machines = {f"{row.machine.get('processor')}, torch {row.machine.get('torch')}" for row in runs if row.machine}
    earlier = sum(row.time < outcome.fixed for row in runs if row.time)
    versions = len({one.hash for one in study.store.versions(claim.name)})
    said = [f"Claim {claim.hash[:12]}, fixed {words.moment(outcome.fixed)} UTC, before its first run."]
    said += [f"Run on {text(machine)}." for machine in sorted(machines)]
    made_with, warning = versions_words(study.versions(outcome.complete))
    said += [f"Made with {text('; '.join(made_with))}."] if made_with else []
    said += [f"<b>{text(sentence(warning))}</b>"] if warning else []
    if versions > 1:
        said.append(f"{versions} versions of this claim were fixed in this folder; this is one of them.")
    if earlier:
        said.append(f"{earlier} of its runs were on record before, from another claim that has the same.")
    fixed = study.store.fixings(claim)
    whole = f"<details><summary>The claim as it was fixed</summary><pre>{text(to_json(fixed[0].get('claim')))}</pre>"
    body = table(["", "runs", "time of one process"], rows, {1, 2}) + items(said)
    body += f"<h3>To repeat it</h3><pre>{text(outcome.command)}</pre>" + (f"{whole}</details>" if fixed else "")
    return section("Cost", "", body)
