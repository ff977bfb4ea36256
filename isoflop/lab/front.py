"""The front page: all claims of a folder on one page."""

from collections.abc import Sequence
from pathlib import Path

from isoflop.files import disk_errors, write_text
from isoflop.lab import drawn
from isoflop.lab.outcome import Outcome
from isoflop.lab.verdict import Finding
from isoflop.lab.wording import JUDGEMENTS, average_words, coloured, judgement, measured_words, progress
from isoflop.report.style import document, stack, table
from isoflop.report.words import duration, text
from isoflop.values import counted

GRID = (
    "display:grid;grid-template-columns:minmax(0,1fr) 240px;gap:4px 18px;align-items:center;margin-top:6px;"
    "min-width:min(620px,80vw)"
)


def write_front(outcomes: Sequence[Outcome], folder: Path) -> Path:
    """Write LAB/index.html, all claims on one page.

    Raises:
        UserError: if it cannot be written.
    """
    path = folder / "index.html"
    with disk_errors("the front page"):
        write_text(path, document("isoflop lab", front(outcomes)))
    return path


def front(outcomes: Sequence[Outcome]) -> str:
    done = [outcome for outcome in outcomes if outcome.finished]
    tally = {verdict: sum(one.decision.verdict == verdict for one in done) for verdict in JUDGEMENTS}
    family = sum(len(outcome.decision.findings) for outcome in done)
    bar = stack([(JUDGEMENTS[verdict][0], float(number), f"{number} {verdict}") for verdict, number in tally.items()])
    claims = counted(len(done), "claim")
    more = f", {len(outcomes) - len(done)} not finished" if len(done) < len(outcomes) else ""
    head = (
        '<header>\n<div class="top"><h1>isoflop lab</h1></div>\n'
        '<p class="story" style="font-size:2rem;font-weight:650;line-height:1.25;margin:18px 0 6px">'
        "What each part of a transformer is for, put to the test</p>\n"
        f'<p class="lead">{claims} with a verdict{more}. Each verdict is by a rule that was fixed before the first '
        "run, and holds for the size, the text and the budget that were run.</p>\n</header>"
    )
    how = (
        '<p class="lead" style="margin-top:14px">How to read the pictures: the dot is '
        f"{average_words([finding for outcome in done for finding in outcome.decision.findings])}, the bar its "
        "interval, and grey is what counts as no difference. The right side is what is predicted: a bar right of the "
        "line supports it, a bar left of the line refutes it, and a bar inside the grey says that there is no "
        "difference worth knowing, which some claims predict. All predictions of a claim have to hold, "
        "but those that are told aside. Each picture "
        "has a scale of its own, of which the ends and the line are given.</p>"
    )
    heads = ["as people say it", "verdict", f"under Holm over all {family}", "cost"]
    body = table(heads, [row(outcome, family) for outcome in outcomes], {3})
    return f"{head}\n{bar}\n{how}\n{body}"


def row(outcome: Outcome, family: int) -> list[str]:
    """A claim's line of the table: the sentence, below it each prediction with its picture."""
    claim, decision = outcome.study.claim, outcome.decision
    link = (
        f'<a href="{text(claim.name)}/report.html" style="color:inherit;font-size:1.12rem;font-weight:600">'
        f"“{text(claim.statement)}”</a>"
    )
    spent = duration(sum(part["seconds"] for part in outcome.study.cost(outcome.complete).values()))
    if not outcome.finished:
        return [link, f"{coloured(judgement(outcome))}<br><small>{progress(outcome)}</small>", "", spent]
    strict = outcome.in_family(family)
    together = "the same" if strict == decision.verdict else JUDGEMENTS[strict][1].lower()
    pictures = "".join(map(prediction, decision.findings))
    return [f'{link}<div style="{GRID}">{pictures}</div>', coloured(judgement(outcome)), together, spent]


def prediction(finding: Finding) -> str:
    """A prediction with its numbers, and its picture next to it."""
    color, said = JUDGEMENTS[finding.verdict]
    aside = " (aside)" if finding.comparison.aside else ""
    words = f"{text(finding.comparison.sentence)}{aside}: {measured_words(finding)}"
    return f"<small>{words}</small>{drawn.strip(finding, color, f'{said}: {words}')}"
