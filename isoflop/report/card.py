"""The model card: a README.md with YAML front matter, as the Hugging Face Hub expects it, from a run's records.

Missing facts are not made up: a source without a licence is listed as such. `isoflop report RUN --card --licence
books=CC0-1.0` sets one, which is kept in the run's card.json.
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

HUB_METRICS = {  # lm-eval's names, which model hubs know, of the metrics of evaluate/methods.py
    "likelihood": "acc",
    "per_character": "acc_norm",
    "per_byte": "acc_bytes",
    "unconditional": "acc_mutual_info",
    "first_choice": "acc",
}
UNKNOWN = "not stated"
LIMITS = (
    "It continues text. It was not trained to follow instructions, to refuse requests or to be truthful, and it knows "
    "nothing beyond its training text.",
    "Its output can be false, offensive, or a verbatim passage of its training text. It should not be presented as "
    "fact or used to make decisions about people.",
    "Its scores hold for the items and the wording of the suites named here, in English.",
)


def write_card(run: Path, out: Path | None = None, licences: Sequence[str] = (), notes: Sequence[str] = ()) -> Path:
    """Write the card of a run and return its path.

    Args:
        out: the Markdown file; None: RUN/README.md.
        notes: what a reader has to know about the export that contains the card.
        licences: "SOURCE=LICENCE" for sources of the run's text, or "LICENCE" alone for the model; kept in card.json.

    Raises:
        UserError: there is no run, or a licence names a source that the run does not have.
    """
    facts = read_facts(read_run(run))
    folder = facts.run.folder
    statements = CardNotes.read(read_object(folder.card))
    if licences:
        statements = with_licences(statements, licences, [name for name, _, _ in source_table(facts.run)])
        with disk_errors(f"the run folder {run}"):
            write_json(folder.card, statements.to_dict())

    path = out or folder.path / "README.md"
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the Markdown file to write, as in {path / 'README.md'}")

    with disk_errors("the model card"):
        write_text(path, card(facts, statements, notes))
    return path


def with_licences(statements: CardNotes, licences: Sequence[str], sources: Sequence[str]) -> CardNotes:
    """The user's statements on licences, updated by `licences`."""
    by_source = dict(statements.sources)
    for option in licences:
        name, separator, licence = option.partition("=")
        if not separator:
            statements = statements.updated(licence=option.strip())
        elif name not in sources:
            raise UserError(
                f"--licence {option}: the run's text has no source {name!r}; it has {', '.join(sources) or 'none'}"
            )
        else:
            by_source[name] = licence.strip()
    return statements.updated(sources=by_source)


def card(facts: Facts, statements: CardNotes, notes: Sequence[str] = ()) -> str:
    """The text of the card."""
    parts = [
        front_matter(facts, statements),
        f"# {line(facts.run.name)}\n\n{about(facts)}",
        formats(facts, notes),
        data(facts, statements),
        dropped(facts),
        compute(facts),
        outcome(facts),
        scores(facts.run.suites, facts.reached.steps),
        use(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: Facts, statements: CardNotes) -> str:
    """The metadata that model hubs read. Values are written as JSON, which is also valid YAML."""
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["isoflop"]}
    if statements.licence:
        metadata = {"license": statements.licence.lower(), **metadata}
    results = [result(score) for score in facts.run.suites if score.score is not None]
    if results:
        metadata["model-index"] = [{"name": line(facts.run.name), "results": results}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()]
    return "\n".join(["---", *lines, "---"])


def result(score: SuiteScore) -> dict[str, Any]:
    """A score as an entry of the front matter's `model-index`: the metric by the name that lm-eval has for it, as model
    hubs do, where it has one."""
    metric = {"type": HUB_METRICS.get(score.metric or "", score.metric), "value": score.score, "name": score.metric}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": score.suite, "type": score.suite},
        "metrics": [metric],
    }


def about(facts: Facts) -> str:
    run = facts.run
    kind = words.model_kind(run.settings.task)
    model = f"A{'n' if kind[0] in 'aeiou' else ''} {kind} of {count(facts.total_parameters)} parameters"
    if run.status == "imported":
        return f"{model}, imported from {line(run.plan.source or 'elsewhere')} with isoflop; not trained here."
    unfinished = "" if facts.finished else " Its training is not finished."
    origin = f", from the weights of {line(run.settings.init)}" if run.settings.init else ", from scratch"
    return f"{model}, pretrained with isoflop{origin}.{unfinished}"


def formats(facts: Facts, notes: Sequence[str]) -> str:
    """The formats that the model can be exported to, as the plan has them, and the notes on this export."""
    planned = facts.run.plan.exports
    lines = [f"`isoflop export` can write it as: {line(planned.words)} ({line(planned.reason)})"] if planned else []
    lines += [line(note) for note in notes]
    return "## Formats\n\n" + "\n".join(f"- {text}" for text in lines) if lines else ""


def data(facts: Facts, statements: CardNotes) -> str:
    """Sources with licence and provenance. Of a path only the last part: a card is public."""
    by_source = source_table(facts.run)
    if not by_source:
        return ""

    rows = [
        [
            line(name),
            line(Path(prepared.pattern).name if prepared.pattern else MISSING),
            line(statements.sources.get(name, UNKNOWN)),
            count(prepared.documents),
            size(prepared.bytes),
            count(read.tokens),
            percent(read.share),
            fixed(read.epochs),
        ]
        for name, prepared, read in by_source
    ]
    head = ["source", "from", "licence", "documents", "text", "tokens read", "share", "epochs"]
    fingerprint = facts.run.data.fingerprint
    note = f"\n\nFingerprint of the prepared text: `{line(fingerprint)}`." if fingerprint else ""
    return f"## Training data\n\n{table(head, rows)}{note}"


def dropped(facts: Facts) -> str:
    """The text that was not used, in the same words as in the report."""
    account = facts.run.data
    if account.missing:
        return ""
    lines = []
    if account.duplicates:
        lines.append(f"{count(account.duplicates)} exact duplicates, {size(account.duplicate_bytes)}")
    if account.in_heldout:
        lines.append(f"{count(account.in_heldout)} documents that are also in the held-out text")
    if account.sampled_share is not None and account.sampled_share < 1:
        lines.append(f"sampled: {percent(account.sampled_share)} of the training text was prepared")
    lines += [line(text) for text in account.not_used().all()]
    lines.append(f"{size(account.heldout.bytes)} were held out to measure on.")
    return "### What was left out\n\n" + "\n".join(f"- {text}" for text in lines)


def compute(facts: Facts) -> str:
    """The cost of training, and the seconds per stage."""
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
    """The forecast and the outcome."""
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


def scores(suites: Sequence[SuiteScore], steps: float | None) -> str:
    """Suites with their intervals, and contamination.

    Args:
        steps: of the run; a score of an earlier checkpoint says so.
    """
    if not suites:
        return "## Evaluation\n\nNo suite was scored; `isoflop eval RUN --suite NAME` keeps scores for this card."

    rows = []
    for suite in suites:
        overlap = MISSING
        if suite.contamination is not None:
            clean = suite.contamination.without
            overlap = f"{count(suite.contamination.overlapping)} item{'s' * (suite.contamination.overlapping != 1)}"
            overlap += f"; {shown(clean.score, suite)} without" if clean and suite.contamination.overlapping else ""
            too_short = suite.contamination.too_short
            overlap += f"; {count(too_short)} too short to tell" if too_short else ""
        score = f"{shown(suite.score, suite)} ({shown(suite.low, suite)} to {shown(suite.high, suite)})"
        about = [line(suite.metric), overlap, line(suite.licence or MISSING)]
        name = line(suite.suite) + words.of_step(suite.step, steps)
        rows.append([name, score, percent(suite.chance), count(suite.items), *about])

    head = ["suite", "score (95 % interval)", "chance", "items", "metric", "in training text", "licence of the items"]
    return "## Evaluation\n\n" + table(head, rows)


def use(facts: Facts) -> str:
    purpose = "research and teaching on pretraining: how loss and abilities depend on data, size and compute"
    is_text = facts.run.settings.task in (None, "causal_lm")
    limits = "\n".join(f"- {text}" for text in LIMITS) if is_text else f"- {LIMITS[1]}"
    return f"## Intended use and limits\n\nMeant for {purpose}.\n\n{limits}"


def shown(value: float | None, score: SuiteScore) -> str:
    return fixed(value) if score.chance is None else percent(value)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table. No cell contains a line break or a vertical bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def line(text: Any) -> str:
    """Untrusted text on one line of Markdown, with all markup escaped."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in shown)
