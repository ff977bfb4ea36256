"""Writes the report: one self-contained HTML file about one run, or about several runs compared."""

from collections.abc import Sequence
from pathlib import Path

from isoflop.errors import UserError
from isoflop.files import disk_errors, write_text
from isoflop.records import read_run
from isoflop.report import account, attempt, compare, history, inside, profile, sections, suites, verdict
from isoflop.report.facts import Facts, read_facts
from isoflop.report.style import document


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page about one run, or about several runs compared, and return its path.

    The run may be finished, running, stopped or just started. The same run folder gives the same bytes.

    Args:
        runs: run folders.
        out: the HTML file to write. Default: RUN/report.html for one run, comparison.html next to the first of several.

    Raises:
        UserError: a folder holds no run, a file in it is damaged, or the page cannot be written.
    """
    if not runs:
        raise UserError("no run was named to report on; name a run folder, as in `isoflop report runs/first`")

    facts = [read_facts(read_run(path)) for path in runs]
    folder = facts[0].run.folder
    if out is None:
        out = folder.report if len(facts) == 1 else folder.path.resolve().parent / "comparison.html"
    if out.is_dir():
        raise UserError(f"{out} is a folder; name the HTML file to write, as in {out / 'report.html'}")

    html = one_run(facts[0]) if len(facts) == 1 else compare.page(facts)
    with disk_errors("the report"):
        write_text(out, html)
    return out


def one_run(facts: Facts) -> str:
    """The complete HTML page of one run: the verdict first, then the details behind it."""
    parts = [
        verdict.header(facts),
        verdict.tiles(facts),
        sections.loss(facts),
        attempt.first_attempt(facts.run),
        sections.plan(facts),
        sections.ladder(facts),
        account.samples(facts),
        suites.suites(facts),
        account.data(facts),
        account.costs(facts),
        inside.inside(facts),
        profile.profile(facts),
        history.history(facts),
        "<footer>Made by isoflop. Loss in nats per token, text in bytes of UTF-8, FLOPs as 6 N D.</footer>",
    ]
    return document(f"{facts.run.name}: isoflop", "\n".join(part for part in parts if part))
