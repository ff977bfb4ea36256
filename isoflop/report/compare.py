"""Several runs on one page, compared with the first, the baseline: warnings about unequal conditions, differences with
the noise to expect, held-out curves against three costs, slots and fields that differ, samples next to each other."""

from collections import Counter
from typing import Any

from isoflop.report import figures, words
from isoflop.report.facts import Facts, column
from isoflop.report.figures import RUN_COLORS
from isoflop.report.paired import WITHOUT_INFLUENCE, Chance, by_seed, difference
from isoflop.report.style import document, key, section, table
from isoflop.report.words import count, duration, fixed, power, text

COSTS = (("tokens", "tokens read", False), ("seconds", "seconds of training", False), ("flops", "FLOPs (6 N D)", True))
RUNNING = "running"  # the windows of runs whose config.json does not name them
TOLERANCE = 0.01  # relative difference of tokens or FLOPs that gets no warning
RUNS_WITH_SAMPLES = 6  # whose samples fit next to each other


def page(runs: list[Facts]) -> str:
    """The complete HTML page."""
    names = distinct(runs)
    measured = [(facts.reached.bits_per_byte, name) for facts, name in zip(runs, names, strict=True)]
    ranking = sorted((bits, name) for bits, name in measured if bits is not None)
    best = (
        f'<div class="big">{ranking[0][0]:.2f}</div><p class="unit">bits per byte: {text(ranking[0][1])} is lowest</p>'
        if ranking
        else ""
    )

    title = f"{len(runs)} runs compared"
    head = f'<header>\n<div class="top"><h1>{title}</h1></div>\n<div style="margin:18px 0">{best}</div>\n</header>'
    body = [
        head,
        warnings(runs, names),
        overview(runs, names),
        against(runs, names),
        curves(runs, names),
        differences(runs, names),
        samples(runs, names),
    ]
    return document(title, "\n".join(part for part in body if part))


def distinct(runs: list[Facts]) -> list[str]:
    """Folder names; those shared by several runs are preceded by the parent folder."""
    names = [facts.run.name for facts in runs]
    repeated = {name for name, times in Counter(names).items() if times > 1}
    return [
        f"{facts.run.folder.path.resolve().parent.name}/{name}" if name in repeated else name
        for facts, name in zip(runs, names, strict=True)
    ]


def color(index: int) -> str:
    return f"run-{index % RUN_COLORS}"


def overview(runs: list[Facts], names: list[str]) -> str:
    rows, bits = [], [facts.reached.bits_per_byte for facts in runs]
    measured = [value for value in bits if value is not None]
    for index, (facts, name) in enumerate(zip(runs, names, strict=True)):
        expected = fixed(facts.expected.bits_per_byte)
        if facts.low is not None and facts.high is not None:
            expected += f" ({facts.low:.2f} to {facts.high:.2f})"
        rows.append(
            [
                key(color(index), text(name)),
                f'<span class="{facts.run.status}">{facts.run.status}</span>',
                f"<b>{fixed(facts.reached.bits_per_byte, 3)}</b>",
                expected,
                f'<span class="{facts.verdict or ""}">{facts.verdict or words.MISSING}</span>',
                count(facts.total_parameters),
                count(facts.reached.tokens),
                duration(facts.reached.seconds),
                power(facts.reached.flops),
            ]
        )

    columns = ["run", "status", "bits per byte", "expected", "verdict", "parameters", "tokens", "time", "FLOPs"]
    best = bits.index(min(measured)) if measured else None
    return section("Runs", "", table(columns, rows, {2, 3, 5, 6, 7, 8}, best))


def curves(runs: list[Facts], names: list[str]) -> str:
    panels = []
    for cost, label, log in COSTS:
        pairs = [
            (cost_at_evaluations(facts, cost), column(facts.run.heldout, "heldout_bits_per_byte")) for facts in runs
        ]
        svg = figures.compared(pairs, f"by-{cost}", label, log)
        panels.append(f'<figure><figcaption class="above">against {label}</figcaption>{svg}</figure>')
    legend = "".join(key(color(index), text(name)) for index, name in enumerate(names))
    body = f'<figure><figcaption>{legend}</figcaption></figure>\n<div class="three">{"".join(panels)}</div>'
    return section("Held-out bits per byte", "The same curves against what they cost.", body)


def cost_at_evaluations(facts: Facts, cost: str) -> figures.Floats:
    """Tokens, seconds or FLOPs at every held-out evaluation, shape (H,). FLOPs are 6 N tokens."""
    if cost == "flops":
        return 6.0 * (facts.parameters if facts.parameters else float("nan")) * column(facts.run.heldout, "tokens")
    return column(facts.run.heldout, cost)


def warnings(runs: list[Facts], names: list[str]) -> str:
    """Unequal conditions other than the parts that are compared; empty if there are none."""
    base, compared = runs[0], list(zip(runs, names, strict=True))[1:]
    lines = [f"<b>{text(name)}</b>: {warning}" for run, name in compared for warning in unequal(run, base)]
    if not lines:
        return ""
    way_out = "isoflop train --like RUN --set FIELD=VALUE trains with one change and all else equal."
    listed = "".join(f"<li>{line}</li>" for line in lines)
    return f'<div class="warning"><b>Unequal conditions</b><ul>{listed}</ul><p>{way_out}</p></div>'


def unequal(facts: Facts, base_facts: Facts) -> list[str]:
    """The reasons why a run is not a fair comparison with the baseline, a line of HTML each."""
    run, base = facts.run, base_facts.run
    reasons = []
    if run.data.fingerprint != base.data.fingerprint:
        reasons.append("trained and measured on other text or with another tokenizer: bits per byte are of two texts")
    for field, title, show in (("tokens", "tokens read", count), ("flops", "FLOPs", power)):
        cost, base_cost = getattr(facts.reached, field), getattr(base_facts.reached, field)
        if cost and base_cost and abs(cost / base_cost - 1) > TOLERANCE:
            reasons.append(f"{title} {show(cost)}, not {show(base_cost)} ({words.change(cost, base_cost)})")

    dtypes = run.settings.runtime.dtype, base.settings.runtime.dtype
    if all(dtypes) and dtypes[0] != dtypes[1]:
        reasons.append(f"computed in {text(dtypes[0])}, not {text(dtypes[1])}")
    batches = [one.config.get("batch") for one in (run, base)]
    windows = [batch.get("windows", RUNNING) if isinstance(batch, dict) else RUNNING for batch in batches]
    if windows[0] != windows[1]:
        reasons.append(
            f"measured in windows of kind {text(windows[0])}, not {text(windows[1])}, as it was trained: "
            f"<code>isoflop eval --windows {text(windows[1])}</code> measures it like the other"
        )
    budgets = run.plan.budget, base.plan.budget
    if budgets[0] != budgets[1] and not run.plan.like and not base.plan.like:
        reasons.append(f"planned for {text(budgets[0] or 'no budget')}, not {text(budgets[1] or 'no budget')}")
    if not facts.finished:
        reasons.append(f"it is {text(run.status)}: its loss is not the final one")
    return reasons


def against(runs: list[Facts], names: list[str]) -> str:
    """The difference of each run from the baseline, with the noise to expect."""
    base, seeds = runs[0], by_seed(runs)
    rows = [[key(color(0), text(names[0])), fixed(base.reached.bits_per_byte, 3), "baseline", "", "", "", ""]]
    sources = set()
    for index, (run, name) in enumerate(zip(runs[1:], names[1:], strict=True), 1):
        compared = difference(run, base, seeds)
        sources.add(compared.by_text.source)
        rows.append(
            [
                key(color(index), text(name)),
                fixed(run.reached.bits_per_byte, 3),
                f"<b>{signed(compared.bits)}</b>",
                words.change(run.reached.bits_per_byte, base.reached.bits_per_byte),
                plus_minus(compared.by_text),
                plus_minus(compared.by_seed),
                f"{compared.reading}{f' (noise up to {compared.noise:.3f})' if compared.noise is not None else ''}",
            ]
        )

    columns = ["run", "bits per byte", "difference", "in percent", "from the text", "from the seed", "conclusion"]
    lead = (
        f"Each run minus {text(names[0])}; lower is better. Standard deviations of the difference: from the held-out "
        f"text ({text('; '.join(sorted(sources)))}), from the seed ({text(seeds.source)}). A difference counts as "
        "shown if it exceeds what chance alone gives in 95 % of cases; one run each is a hint and no proof."
    )
    return section("Compared with the baseline", lead, table(columns, rows, {1, 2, 3, 4, 5}))


def signed(value: float | None) -> str:
    return words.MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def plus_minus(chance: Chance) -> str:
    return words.MISSING if chance.bits is None else f"± {chance.bits:.4f}"


def differences(runs: list[Facts], names: list[str]) -> str:
    """One row per slot or field in which the runs differ; those without influence on what is learned are folded."""
    configs = [slots(facts.run.config) for facts in runs]
    fields = dict.fromkeys(field for config in configs for field in config)
    differing = [field for field in fields if len({config.get(field, words.MISSING) for config in configs}) > 1]
    if not differing:
        return section("Configuration", "The configurations are the same in every field.", "")
    heads = [key(color(index), text(name)) for index, name in enumerate(names)]

    def rows(chosen: list[str]) -> str:
        cells = [
            [f"<code>{text(field)}</code>", *(text(config.get(field, words.MISSING)) for config in configs)]
            for field in chosen
        ]
        return table(["field", *heads], cells)

    decisive = [field for field in differing if field.partition(".")[0] not in WITHOUT_INFLUENCE]
    folded = [field for field in differing if field not in decisive]
    body = rows(decisive) if decisive else ""
    if folded:
        summary = f"<summary>{len(folded)} more, without influence on what is learned</summary>"
        body += f"<details>{summary}{rows(folded)}</details>"
    number = "field" if len(differing) == 1 else f"{len(differing)} fields"
    lead = f"The {number} in which the runs differ; each part of the model is one row with its options."
    return section("Configuration", lead, body)


def slots(config: dict[str, Any]) -> dict[str, str]:
    """A configuration's fields by dotted name. An entry with its options, such as a part of the model, is one field."""
    fields: dict[str, str] = {}
    for name, value in config.items():
        if name == "model" and isinstance(value, dict):
            fields |= {f"{name}.{slot}": entry(part) for slot, part in value.items()}
        elif name == "loss":
            fields[name] = entry(value)
        else:
            fields |= flatten(value, name)
    return fields


def entry(value: Any) -> str:
    """An entry with its options on one line: moe (experts 3, top_k 2)."""
    if not isinstance(value, dict) or "name" not in value:
        return words.plain(value)
    options = ", ".join(f"{name} {words.plain(inner)}" for name, inner in value.items() if name != "name")
    return f"{words.plain(value['name'])} ({options})" if options else words.plain(value["name"])


def samples(runs: list[Facts], names: list[str]) -> str:
    """The last samples of all runs next to each other, prompt by prompt."""
    shown = list(zip(runs, names, strict=True))[:RUNS_WITH_SAMPLES]
    last = [{sample.prompt: sample for sample in facts.run.samples} for facts, _ in shown]
    prompts = dict.fromkeys(prompt for by_prompt in last for prompt in by_prompt)
    if not prompts:
        return ""

    parts = []
    for prompt in prompts:
        columns = []
        for index, ((_, name), by_prompt) in enumerate(zip(shown, last, strict=True)):
            sample = by_prompt.get(prompt)
            written = "no sample for this prompt" if sample is None else text(sample.text.removeprefix(prompt))
            if sample is not None and sample.reference is not None:
                written += f"\n({text(sample.reference)})"
            at = f"step {count(sample.step)}" if sample is not None else ""
            columns.append(
                f'<div>{key(color(index), text(name))} <small>{at}</small><pre class="box">{written}</pre></div>'
            )
        title = f"“{text(prompt)}”" if prompt.strip() else "From nothing"
        parts.append(f'<h3 class="prompt">{title}</h3>\n<div class="side">{"".join(columns)}</div>')

    hidden = len(runs) - len(shown)
    more = f" {hidden} more run{'s are' if hidden > 1 else ' is'} not shown." if hidden else ""
    return section("Samples", "The last sample of each run." + more, "\n".join(parts))


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as dotted fields with their values on one line."""
    if isinstance(value, dict) and value:
        fields: dict[str, str] = {}
        for name, inner in value.items():
            fields |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
        return fields
    return {prefix: words.plain(value)}
