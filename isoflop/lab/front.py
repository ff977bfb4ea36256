"""The front page: all claims of a folder on one page."""

from collections.abc import Sequence
from pathlib import Path

from isoflop.files import disk_errors, write_text
from isoflop.lab.outcome import Outcome
from isoflop.lab.wording import JUDGEMENTS, coloured, deciding, measured_words
from isoflop.report.style import document, stack, table
from isoflop.report.words import duration, text


def write_front(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write LAB/index.html, all claims on one page.

    Raises:
        UserError: if it cannot be written.
    """
    cards, tally = [], dict.fromkeys(JUDGEMENTS, 0)
    family = sum(len(outcome.decision.findings) for outcome in outcomes)
    for outcome in outcomes:
        claim, decision = outcome.study.claim, outcome.decision
        tally[decision.verdict] += 1
        finding, more = deciding(outcome)
        strict = outcome.in_family(family)
        together = "the same" if strict == decision.verdict else JUDGEMENTS[strict][1].lower()
        cards.append(
            [
                f'<a href="{text(claim.name)}/report.html">“{text(claim.statement)}”</a>',
                coloured(decision.verdict),
                f"{text(more)}{text(finding.comparison.sentence)}: {measured_words(finding)}",
                together,
                duration(sum(part["seconds"] for part in outcome.study.cost(outcome.pairs).values())),
            ]
        )
    bar = stack([(JUDGEMENTS[verdict][0], float(number), f"{number} {verdict}") for verdict, number in tally.items()])
    counted = ", ".join(f"{number} {verdict}" for verdict, number in tally.items() if number)
    head = (
        '<header>\n<div class="top"><h1>isoflop lab</h1></div>\n'
        '<p class="story" style="font-size:1.7rem;font-weight:650;line-height:1.3;margin:18px 0 6px">'
        "What each part of a transformer is for, put to the test.</p>\n"
        f'<p class="lead">{counted}. Each verdict is by a rule that was fixed before the first run, and speaks of the '
        "size that was run.</p>\n</header>"
    )
    body = table(["as people say it", "verdict", "what was found", f"under Holm over all {family}", "cost"], cards, {4})
    path = folder / "index.html"
    with disk_errors("the front page"):
        write_text(path, document("isoflop lab", f"{head}\n{bar}\n{body}"))
    return path
