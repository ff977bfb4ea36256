"""The lower half of a run's page: samples, the account of the data, costs and machine."""

import shlex
from collections.abc import Sequence

from isoflop.files import to_json
from isoflop.records import DataAccount, SampleLine
from isoflop.report import words
from isoflop.report.facts import Facts, first_known, source_table
from isoflop.report.style import key, section, stack, table
from isoflop.report.words import count, duration, fixed, percent, size, text

EARLY_SAMPLES = 4


def samples(facts: Facts) -> str:
    run = facts.run
    if not run.samples:
        return section("Samples", "No sample has been taken yet.", "")

    by_prompt: dict[str, list[SampleLine]] = {}
    for sample in run.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    body = "\n".join(one_prompt(facts, prompt, lines) for prompt, lines in by_prompt.items())
    return section("Samples", "The same prompts at several steps of training; the prompt is in colour.", body)


def one_prompt(facts: Facts, prompt: str, lines: list[SampleLine]) -> str:
    """The samples of one prompt: the first, a few between, the last one large; the others can be unfolded."""
    *early, last = lines
    shown = set(range(len(early)))
    if len(early) > EARLY_SAMPLES:
        shown = {round(index * (len(early) - 1) / (EARLY_SAMPLES - 1)) for index in range(EARLY_SAMPLES)}
    body = "".join(one_sample(facts, prompt, early[index], "early") for index in sorted(shown))
    body += one_sample(facts, prompt, last, "last")

    hidden = [early[index] for index in range(len(early)) if index not in shown]
    folded = ""
    if hidden:
        inside = "".join(one_sample(facts, prompt, sample, "early") for sample in hidden)
        folded = f'<details><summary>{len(hidden)} more in between</summary><div class="steps">{inside}</div></details>'
    title = f"“{text(prompt)}”" if prompt.strip() else "From nothing"
    return f'<h3 class="prompt">{title}</h3>\n<div class="steps">{body}</div>{folded}'


def one_sample(facts: Facts, prompt: str, sample: SampleLine, css: str) -> str:
    step = sample.step
    continued = sample.text.removeprefix(prompt)
    if sample.reference is not None:  # pairs: the model's output, then the expected one in parentheses
        continued = f"\n{sample.text}\n({sample.reference})"

    bits = None
    for line in facts.run.heldout:
        if line.step is not None and step is not None and line.step <= step:
            bits = line.heldout_bits_per_byte

    note = f"{fixed(bits)} bits/byte" if bits is not None else ""
    note += f"{' · ' if note else ''}cut short, to keep the time limit" if sample.cut else ""

    return (
        f'<div class="at"><b>step {count(step)}</b>{note}</div>'
        f'<pre class="{css}"><em>{text(prompt)}</em>{text(continued)}</pre>\n'
    )


def data(facts: Facts) -> str:
    account = facts.run.data
    if account.missing:
        return ""
    train, heldout = account.train.bytes or 0.0, account.heldout.bytes or 0.0
    duplicate, skipped = account.duplicate_bytes or 0.0, account.skipped_bytes or 0.0
    body = stack(
        [
            ("train", train, f"training {size(train)}"),
            ("heldout", heldout, f"held out {size(heldout)}"),
            ("run-4", duplicate, f"duplicates, dropped {size(duplicate)}"),
            ("run-7", skipped, f"not used {size(skipped)}"),
        ]
    )

    how = account.heldout.how
    share = account.sampled_share
    totals = [
        ("Documents", count(account.documents), amount(account.pieces, "pieces after splitting long documents")),
        ("Exact duplicates", count(account.duplicates), f"{size(duplicate)} dropped"),
        ("Not used", size(skipped), "files, records and pieces that could not be read; see below" if skipped else ""),
        ("Training text", size(train), amount(account.train.tokens, "tokens")),
        (
            "Held-out text",
            size(heldout),
            " · ".join(filter(None, [amount(account.heldout.tokens, "tokens"), text(how) if how else ""])),
        ),
        ("Tokenizer", text(account.tokenizer or words.MISSING), vocabulary(account)),
        (
            "Share of the corpus prepared",
            percent(share),
            "all of it" if share == 1 else "sampled by content hash" if share is not None else "",
        ),
        ("Epochs", fixed(facts.epochs), "tokens read divided by training tokens"),
        *lost_to_bad_steps(facts),
    ]

    body += table([], [[name, f"<b>{value}</b>", note] for name, value, note in totals])
    body += sources(facts) + unused(account)
    return section("Data", "All bytes that were found, and what each was used for.", body)


def lost_to_bad_steps(facts: Facts) -> list[tuple[str, str, str]]:
    """Rows on the tokens that bad steps cost: those whose update was discarded, and those skipped after a rollback."""
    kinds = (
        ("Discarded", "skip", "tokens of steps whose update was discarded"),
        ("Skipped", "rollback", "tokens skipped after a rollback"),
    )
    rows = []
    for title, action, note in kinds:
        lines = [line for line in facts.run.skips if line.action == action]
        tokens = sum(line.tokens for line in lines)
        rows += [(title, count(tokens), f"{note}; {times(len(lines))}")] if lines else []
    return rows


def times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def amount(value: float | None, label: str) -> str:
    return f"{count(value)} {label}" if value is not None else ""


def vocabulary(account: DataAccount) -> str:
    ratio = account.bytes_per_token
    parts = [amount(account.vocab_size, "ids"), f"{ratio:.2f} bytes per token" if ratio else ""]
    return " · ".join(part for part in parts if part)


def sources(facts: Facts) -> str:
    by_source = source_table(facts.run)
    if not by_source:
        return ""

    rows = []
    for name, prepared, read in by_source:
        weight = first_known(read.asked, prepared.weight)
        rows.append(
            [
                text(name),
                count(prepared.documents),
                size(prepared.bytes),
                count(prepared.tokens),
                count(read.tokens),
                percent(weight, 2),
                percent(read.share, 2),
                share_bar(read.share, weight),
                fixed(read.epochs),
            ]
        )

    columns = ["source", "documents", "bytes", "tokens", "tokens read", "weight", "share read", "", "epochs"]
    legend = f"<figcaption>{key('train', 'share of the tokens read')}{key('heldout', 'weight')}</figcaption>"
    return f"<h3>By source</h3>\n<figure>{table(columns, rows, {1, 2, 3, 4, 5, 6, 8})}{legend}</figure>"


def share_bar(share: float | None, weight: float | None) -> str:
    """The share of the tokens read as a bar, the weight that was set as a tick on it."""
    if share is None and weight is None:
        return ""
    marks = f'<i style="width:{100 * min(max(share or 0.0, 0.0), 1.0):.2f}%"></i>'
    if weight is not None:
        marks += f'<b style="left:{100 * min(max(weight, 0.0), 1.0):.2f}%"></b>'
    return f'<div class="bar">{marks}</div>'


def unused(account: DataAccount) -> str:
    """The text that was not used and the notes on it, in the same words as on the terminal; then the first files."""
    not_used = account.not_used()
    body = f"<p><strong>{text(not_used.warning)}</strong></p>" if not_used.warning else ""
    if not_used.lines:
        body = f"<h3>Not used</h3>\n{body}{bullets(not_used.lines)}"
    body += bullets(not_used.notes)

    files = account.skipped
    if not files:
        return body
    rows = [[text(f.path or ""), text(f.reason or ""), size(f.bytes)] for f in files]
    total = (account.skipped_files or 0) + (account.skipped_records or 0)
    all_listed = total <= len(files)
    title = "all files and records not used" if all_listed else f"the first {len(files)} of {count(total)} not used"
    return f"{body}<details><summary>{title}</summary>{table(['where', 'reason', 'bytes'], rows, {2})}</details>"


def bullets(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def costs(facts: Facts) -> str:
    run = facts.run
    phases = {name: run.result.phases.get(name) for name in ("prepare", "calibrate", "train", "evaluate", "report")}
    colors = dict(zip(phases, ("run-2", "run-4", "train", "heldout", "mark"), strict=True))
    if "pilots" in run.result.phases:  # within the budget, before the training
        phases["pilots"], colors["pilots"] = run.result.phases["pilots"], "run-3"
    body = stack([(colors[name], seconds or 0.0, f"{name} {duration(seconds)}") for name, seconds in phases.items()])

    environment = run.environment.to_dict()
    rows = [
        ("Peak memory", size(run.result.peak_memory_bytes)),
        (
            "Compute dtype",
            text(run.plan.calibration.dtype or run.settings.runtime.dtype or words.MISSING),
        ),
    ]
    rows += [
        (text(name), text(words.plain(value))) for name, value in environment.items() if not isinstance(value, dict)
    ]
    for name, group in environment.items():
        if not isinstance(group, dict):
            continue
        for inner, value in group.items():
            shown = words.rate(run.environment.peak.get(inner)) if name == "peak" else text(words.plain(value))
            rows.append((f"{text(name)}: {text(inner)}", shown))
    body += "<h3>Machine and versions</h3>\n" + table([], [[name, value] for name, value in rows])

    body += f'<h3>Commands</h3>\n<pre class="box">{text(commands(facts))}</pre>'
    config = text(to_json(run.config))
    body += f'<details><summary>The complete configuration</summary><pre class="box">{config}</pre></details>'
    lead = "A budget in seconds is for training, with pilots and an abandoned attempt if there were any."
    return section("Cost and machine", lead, body)


def commands(facts: Facts) -> str:
    """Commands that continue from here, one per line, each with a comment."""
    run, folder = facts.run, str(facts.run.folder.path)
    again = ["isoflop", "train", "--config", str(run.folder.config), "--out", f"{folder}-again"]
    listed = [("train the same run again", again)]
    if run.status == "imported":
        listed = [("continue training from these weights", ["isoflop", "train", "SOURCE", "--init", folder])]
    elif not facts.finished and run.status != "running":
        listed.insert(0, ("resume it", ["isoflop", "train", "--resume", folder]))
    if run.status != "running" and (run.training or run.status == "imported"):
        listed.append(("generate text", ["isoflop", "sample", folder, "--prompt", "Once"]))
    return "\n".join(f"{shlex.join(command)}    # {purpose}" for purpose, command in listed)
