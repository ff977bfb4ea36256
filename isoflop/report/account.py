"""The lower half of a run's page: samples along the way, the data's account, costs and machine."""

import shlex
from collections.abc import Sequence

from isoflop.files import to_json
from isoflop.records import DataAccount, SampleLine
from isoflop.report import words
from isoflop.report.facts import Facts, first, source_table
from isoflop.report.style import key, section, stack, table
from isoflop.report.words import count, duration, fixed, percent, size, text

EARLY_SAMPLES = 4


def samples(facts: Facts) -> str:
    run = facts.run
    if not run.samples:
        return section("What it writes", "No sample has been taken yet.", "")
    by_prompt: dict[str, list[SampleLine]] = {}
    for sample in run.samples:
        by_prompt.setdefault(sample.prompt, []).append(sample)
    body = "\n".join(one_prompt(facts, prompt, taken) for prompt, taken in by_prompt.items())
    return section("What it writes", "The same prompts as training went on; the prompt is in colour.", body)


def one_prompt(facts: Facts, prompt: str, taken: list[SampleLine]) -> str:
    """The samples of one prompt: the first, a few between, the last one large; the rest can be unfolded."""
    *early, last = taken
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
    if sample.reference is not None:  # an output for an input, and what it should have been
        continued = f"\n{sample.text}\n({sample.reference})"
    bits = None
    for line in facts.run.heldout:
        if line.step is not None and step is not None and line.step <= step:
            bits = line.heldout_bits_per_byte
    note = f"{fixed(bits)} bits/byte" if bits is not None else ""
    note += f"{' · ' if note else ''}ended early, to keep the time" if sample.cut else ""
    return (
        f'<div class="at"><b>step {count(step)}</b>{note}</div>'
        f'<pre class="{css}"><em>{text(prompt)}</em>{text(continued)}</pre>\n'
    )


def data(facts: Facts) -> str:
    account = facts.run.data
    if account.missing:
        return ""
    train, heldout = account.train.bytes or 0.0, account.heldout.bytes or 0.0
    twice, skipped = account.duplicate_bytes or 0.0, account.skipped_bytes or 0.0
    body = stack(
        [
            ("train", train, f"training {size(train)}"),
            ("heldout", heldout, f"held out {size(heldout)}"),
            ("run-4", twice, f"duplicates, dropped {size(twice)}"),
            ("run-7", skipped, f"not used {size(skipped)}"),
        ]
    )
    how = account.heldout.how
    share = account.sampled_share
    wholes = [
        ("Documents", count(account.documents), amount(account.pieces, "pieces after long ones were cut")),
        ("Exact duplicates", count(account.duplicates), f"{size(twice)} dropped"),
        ("Not used", size(skipped), "files, records and pieces that were lost; see below" if skipped else ""),
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
        ("Epochs", fixed(facts.epochs), "tokens read over training tokens"),
        *left_out(facts),
    ]
    body += table([], [[name, f"<b>{value}</b>", note] for name, value, note in wholes])
    body += sources(facts) + unused(account)
    return section("Data", "Every byte that was found, and where it went.", body)


def left_out(facts: Facts) -> list[tuple[str, str, str]]:
    """Tokens that bad steps cost: those read and not learned from, and those never read."""
    kinds = (
        ("Left out", "skip", "tokens read in steps whose update was left out"),
        ("Passed over", "rollback", "tokens that rollbacks kept from being read"),
    )
    found = []
    for title, action, note in kinds:
        lines = [line for line in facts.run.skips if line.action == action]
        tokens = sum(line.tokens for line in lines)
        found += [(title, count(tokens), f"{note}; {times(len(lines))}")] if lines else []
    return found


def times(number_: int) -> str:
    return "once" if number_ == 1 else f"{number_:,} times"


def amount(value: float | None, label: str) -> str:
    return f"{count(value)} {label}" if value is not None else ""


def vocabulary(account: DataAccount) -> str:
    ratio = account.bytes_per_token
    parts = [amount(account.vocab_size, "ids"), f"{ratio:.2f} bytes per token" if ratio else ""]
    return " · ".join(part for part in parts if part)


def sources(facts: Facts) -> str:
    listed = source_table(facts.run)
    if not listed:
        return ""
    rows = []
    for name, prepared, read in listed:
        got, asked = read.share, first(read.asked, prepared.weight)
        rows.append(
            [
                text(name),
                count(prepared.documents),
                size(prepared.bytes),
                count(prepared.tokens),
                count(read.tokens),
                percent(asked, 2),
                percent(got, 2),
                bar(got, asked),
                fixed(read.epochs),
            ]
        )
    columns = ["source", "documents", "bytes", "tokens", "tokens read", "asked", "got", "", "epochs"]
    legend = f"<figcaption>{key('train', 'share of the tokens read')}{key('heldout', 'share asked for')}</figcaption>"
    return f"<h3>By source</h3>\n<figure>{table(columns, rows, {1, 2, 3, 4, 5, 6, 8})}{legend}</figure>"


def bar(got: float | None, asked: float | None) -> str:
    """The share got as a bar, the share asked for as a tick on it."""
    if got is None and asked is None:
        return ""
    inside = f'<i style="width:{100 * min(max(got or 0.0, 0.0), 1.0):.2f}%"></i>'
    if asked is not None:
        inside += f'<b style="left:{100 * min(max(asked, 0.0), 1.0):.2f}%"></b>'
    return f'<div class="bar">{inside}</div>'


def unused(account: DataAccount) -> str:
    """What was not used and what was noticed, in the words of the screen, and the first of it in a list."""
    said = account.not_used()
    body = f"<p><strong>{text(said.warning)}</strong></p>" if said.warning else ""
    if said.lines:
        body = f"<h3>Not used</h3>\n{body}{listed(said.lines)}"
    body += listed(said.notes)
    files = account.skipped
    if not files:
        return body
    rows = [[text(f.path or ""), text(f.reason or ""), size(f.bytes)] for f in files]
    total = (account.skipped_files or 0) + (account.skipped_records or 0)
    title = "all that was not used" if total <= len(files) else f"the first {len(files)} of {count(total)} not used"
    first_of = table(["where", "reason", "bytes"], rows, {2})
    return f"{body}<details><summary>{title}</summary>{first_of}</details>"


def listed(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def costs(facts: Facts) -> str:
    run = facts.run
    phases = {name: run.result.phases.get(name) for name in ("prepare", "calibrate", "train", "evaluate", "report")}
    colors = dict(zip(phases, ("run-2", "run-4", "train", "heldout", "mark"), strict=True))
    if "pilots" in run.result.phases:  # within the budget, before the training
        phases["pilots"], colors["pilots"] = run.result.phases["pilots"], "run-3"
    body = stack([(colors[name], seconds or 0.0, f"{name} {duration(seconds)}") for name, seconds in phases.items()])
    environment = run.environment.to_dict()
    facts_of = [
        ("Peak memory", size(run.result.peak_memory_bytes)),
        (
            "Compute dtype",
            text(run.plan.calibration.dtype or run.settings.runtime.dtype or words.MISSING),
        ),
    ]
    facts_of += [
        (text(name), text(words.plain(value))) for name, value in environment.items() if not isinstance(value, dict)
    ]
    for name, group in environment.items():
        if not isinstance(group, dict):
            continue
        for inner, value in group.items():
            measured = words.rate(run.environment.peak.get(inner)) if name == "peak" else text(words.plain(value))
            facts_of.append((f"{text(name)}: {text(inner)}", measured))
    body += "<h3>Machine and versions</h3>\n" + table([], [[name, value] for name, value in facts_of])
    folder = run.folder.path
    commands = [("run it again", ["isoflop", "train", "--config", str(run.folder.config), "--out", f"{folder}-again"])]
    if run.status == "imported":
        commands = [("train on from it", ["isoflop", "train", "SOURCE", "--init", str(folder)])]
    elif not facts.finished and run.status != "running":
        commands.insert(0, ("go on from where it stopped", ["isoflop", "train", "--resume", str(folder)]))
    if run.status != "running" and (run.training or run.status == "imported"):
        commands.append(("let it write", ["isoflop", "sample", str(folder), "--prompt", "Once"]))
    lines = "\n".join(f"{shlex.join(command)}    # {what}" for what, command in commands)
    body += f'<h3>Commands</h3>\n<pre class="box">{text(lines)}</pre>'
    exact = text(to_json(run.config))
    body += f'<details><summary>The exact configuration</summary><pre class="box">{exact}</pre></details>'
    return section("Cost and machine", "Only training counts against a time budget.", body)
