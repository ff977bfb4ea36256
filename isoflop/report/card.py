"""The model card: a README.md in the ecosystem's form (YAML in front, Markdown after it), of what a run has on record.

What nobody has said is not made up: a source without a licence says so, and `isoflop report RUN --card --licence
books=CC0-1.0` says it, which is kept in the run's card.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import disk_errors, write_json, write_text
from isoflop.records import CardNotes, SuiteScore, read_object, read_run
from isoflop.report import words
from isoflop.report.facts import Facts, machine, read_facts, source_table
from isoflop.report.words import MISSING, count, duration, fixed, percent, power, size

UNSAID = "not said"
LIMITS = (
    "It continues text. It was not taught to follow instructions, to refuse, or to be right, and it knows of nothing "
    "that is not in its text.",
    "What it writes can be false, offensive, or a passage of its training text; it should not be shown to people as "
    "fact or used to decide anything about them.",
    "Its scores hold for the items and the wording of the suites named here, in English.",
)


def write_card(run: Path, out: Path | None = None, licences: Sequence[str] = ()) -> Path:
    """Write the card of a run and return where it lies.

    Args:
        out: the Markdown file; None: RUN/README.md.
        licences: "SOURCE=LICENCE" for sources of the run's text, or "LICENCE" alone for the model; kept in card.json.

    Raises:
        UserError: if there is no run, or a source that it does not have is named.
    """
    facts = read_facts(read_run(run))
    folder = facts.run.folder
    said = CardNotes.read(read_object(folder.card))
    if licences:
        said = with_licences(said, licences, [name for name, _, _ in source_table(facts.run)])
        with disk_errors(f"the run folder {run}"):
            write_json(folder.card, said.to_dict())
    path = out or folder.path / "README.md"
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the Markdown file to write, as in {path / 'README.md'}")
    with disk_errors("the model card"):
        write_text(path, card(facts, said))
    return path


def with_licences(said: CardNotes, given: Sequence[str], sources: Sequence[str]) -> CardNotes:
    """What is said of licences, with what is said now."""
    by_source = dict(said.sources)
    for one in given:
        name, separator, licence = one.partition("=")
        if not separator:
            said = said.updated(licence=one.strip())
        elif name not in sources:
            raise UserError(
                f"--licence {one}: the run's text has no source {name!r}; it has {', '.join(sources) or 'none'}"
            )
        else:
            by_source[name] = licence.strip()
    return said.updated(sources=by_source)


def card(facts: Facts, said: CardNotes) -> str:
    """The whole card."""
    parts = [
        front_matter(facts, said),
        f"# {line(facts.run.name)}\n\n{about(facts)}",
        data(facts, said),
        dropped(facts),
        compute(facts),
        outcome(facts),
        scores(facts.run.suites),
        use(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: Facts, said: CardNotes) -> str:
    """What the ecosystem's sites read. Strings are written as JSON, which is YAML too."""
    about: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["isoflop"]}
    if said.licence:
        about = {"license": said.licence.lower(), **about}
    results = [result(one) for one in facts.run.suites if one.score is not None]
    if results:
        about["model-index"] = [{"name": line(facts.run.name), "results": results}]
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items()), "---"]
    )


def result(one: SuiteScore) -> dict[str, Any]:
    """A score as model-index has it."""
    metric = {"type": one.metric, "value": one.score, "name": one.metric}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": one.suite, "type": one.suite},
        "metrics": [metric],
    }


def about(facts: Facts) -> str:
    run = facts.run
    kind = words.model_kind(run.settings.task)
    made = f"A{'n' if kind[0] in 'aeiou' else ''} {kind} of {count(facts.total_parameters)} parameters"
    if run.status == "imported":
        return f"{made}, imported from {line(run.plan.source or 'elsewhere')} with isoflop; not trained here."
    unfinished = "" if facts.finished else " Its training is not finished."
    origin = f", from the weights of {line(run.settings.init)}" if run.settings.init else ", from scratch"
    return f"{made}, pretrained with isoflop{origin}.{unfinished}"


def data(facts: Facts, said: CardNotes) -> str:
    """Sources with licence and provenance. Of a path only the last part is told: a card is for others."""
    listed = source_table(facts.run)
    if not listed:
        return ""
    rows = [
        [
            line(name),
            line(Path(prepared.pattern).name if prepared.pattern else MISSING),
            line(said.sources.get(name, UNSAID)),
            count(prepared.documents),
            size(prepared.bytes),
            count(read.tokens),
            percent(read.share),
            fixed(read.epochs),
        ]
        for name, prepared, read in listed
    ]
    head = ["source", "from", "licence", "documents", "text", "tokens read", "share", "epochs"]
    fingerprint = facts.run.data.fingerprint
    print_ = f"\n\nFingerprint of the prepared text: `{line(fingerprint)}`." if fingerprint else ""
    return f"## Training data\n\n{table(head, rows)}{print_}"


def dropped(facts: Facts) -> str:
    """What of the text was not used, in the words of the report."""
    account = facts.run.data
    if account.missing:
        return ""
    lines = []
    if account.duplicates:
        lines.append(f"{count(account.duplicates)} exact duplicates, {size(account.duplicate_bytes)}")
    if account.in_heldout:
        lines.append(f"{count(account.in_heldout)} documents that are in the held-out text too")
    if account.sampled_share is not None and account.sampled_share < 1:
        lines.append(f"sampled: {percent(account.sampled_share)} of the training text was prepared")
    lines += [line(text) for text in account.not_used().all()]
    held = f"{size(account.heldout.bytes)} were held out to measure on."
    return "### What was left out\n\n" + "\n".join(f"- {text}" for text in [*lines, held])


def compute(facts: Facts) -> str:
    """Seconds by stage, and what training cost."""
    run, reached = facts.run, facts.reached
    if run.status == "imported":
        return ""
    phases = [[name, duration(seconds)] for name, seconds in run.result.phases.items()]
    lines = [
        f"- training: {power(reached.flops)} FLOPs (6 N D), {count(reached.tokens)} tokens in {count(reached.steps)} "
        f"steps, {duration(reached.seconds)}",
        f"- machine: {line(machine(run)) or MISSING}, {line(run.settings.runtime.dtype or MISSING)}",
    ]
    stages = f"\n\n{table(['stage', 'time'], phases)}" if phases else ""
    return "## Compute\n\n" + "\n".join(lines) + stages


def outcome(facts: Facts) -> str:
    """The forecast and what came of it."""
    if facts.reached.bits_per_byte is None:
        return ""
    text = f"Held-out loss: {fixed(facts.reached.bits_per_byte, 3)} bits per byte"
    text += f", {fixed(facts.reached.nats_per_token, 3)} nats per token." if facts.reached.nats_per_token else "."
    if expected := facts.expected_bits:
        text += f" Forecast before training: {expected.value:.3f} ({expected.low:.3f} to {expected.high:.3f})"
        text += f"; the outcome is {facts.verdict} that interval." if facts.verdict == "inside" else ""
        text += f"; the outcome is {facts.verdict} than that interval." if facts.verdict in ("better", "worse") else ""
        text += "" if facts.verdict else "."
    return f"## Forecast and outcome\n\n{text}"


def scores(found: Sequence[SuiteScore]) -> str:
    """Suites with their intervals, and contamination."""
    if not found:
        return "## Evaluation\n\nNo suite was scored; `isoflop eval RUN --suite NAME` keeps scores for this card."
    rows = []
    for one in found:
        overlap = MISSING
        if one.contamination is not None:
            clean = one.contamination.without
            overlap = f"{count(one.contamination.overlapping)} items"
            overlap += f"; {shown(clean.score, one)} without" if clean and one.contamination.overlapping else ""
            overlap += f"; {count(one.contamination.too_short)} too short to say" if one.contamination.too_short else ""
        score = f"{shown(one.score, one)} ({shown(one.low, one)} to {shown(one.high, one)})"
        about = [line(one.metric), overlap, line(one.licence or MISSING)]
        rows.append([line(one.suite), score, percent(one.chance), count(one.items), *about])
    head = ["suite", "score (95 % interval)", "chance", "items", "by", "in the training text", "licence of the items"]
    return "## Evaluation\n\n" + table(head, rows)


def use(facts: Facts) -> str:
    made = facts.run.settings.task
    of = "research and teaching on pretraining: how loss and abilities follow from data, size and compute"
    limits = "\n".join(f"- {text}" for text in LIMITS) if made in (None, "causal_lm") else f"- {LIMITS[1]}"
    return f"## Intended use and limits\n\nMeant for {of}.\n\n{limits}"


def shown(value: float | None, one: SuiteScore) -> str:
    return fixed(value) if one.chance is None else percent(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that hold no line end and no bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def line(text: Any) -> str:
    """Foreign text on one line of Markdown, with nothing in it that a reader would take for markup."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in shown)
