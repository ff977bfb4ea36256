"""Several runs on one page, the first of them the baseline: what is unlike beside the swap, differences with the noise
to expect, held-out curves against three costs, slots and fields that differ, samples side by side."""

from collections import Counter
from typing import Any

from isoflop.report import figures, words
from isoflop.report.facts import Facts, column
from isoflop.report.figures import RUN_COLORS
from isoflop.report.paired import BESIDE, Chance, by_seed, difference
from isoflop.report.style import document, key, section, table
from isoflop.report.words import count, duration, fixed, power, text

COSTS = (("tokens", "tokens read", False), ("seconds", "seconds of training", False), ("flops", "FLOPs (6 N D)", True))
ALIKE = 0.01  # share by which tokens or FLOPs may differ without a word
SAMPLES_SIDE_BY_SIDE = 6  # runs


def page(runs: list[Facts]) -> str:
    """The whole HTML page."""
    names = distinct(runs)
    measured = [(facts.reached.bits_per_byte, name) for facts, name in zip(runs, names, strict=True)]
    known = sorted((bits, name) for bits, name in measured if bits is not None)
    best = (
        f'<div class="big">{known[0][0]:.2f}</div><p class="unit">bits per byte: {text(known[0][1])} is lowest</p>'
        if known
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
    """Folder names; those that more than one run has, with the folder above."""
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
    known = [value for value in bits if value is not None]
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
    best = bits.index(min(known)) if known else None
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
    """What makes the runs unlike the baseline beside a swap of their parts; empty where nothing does."""
    base, others = runs[0], list(zip(runs, names, strict=True))[1:]
    found = [f"<b>{text(name)}</b>: {said}" for run, name in others for said in unlike(run, base)]
    if not found:
        return ""
    way_out = "isoflop train --like RUN --set FIELD=VALUE trains with one change and all else equal."
    lines = "".join(f"<li>{line}</li>" for line in found)
    return f'<div class="warning"><b>Not alike</b><ul>{lines}</ul><p>{way_out}</p></div>'


def unlike(run: Facts, base: Facts) -> list[str]:
    """In what a run is no fair comparison with the baseline, a line of HTML each."""
    one, other = run.run, base.run
    said = []
    if one.data.fingerprint != other.data.fingerprint:
        said.append("trained and measured on other text, or with another tokenizer: bits per byte are of two texts")
    for field, title, show in (("tokens", "tokens read", count), ("flops", "FLOPs", power)):
        here, there = getattr(run.reached, field), getattr(base.reached, field)
        if here and there and abs(here / there - 1) > ALIKE:
            said.append(f"{title} {show(here)}, not {show(there)} ({words.change(here, there)})")
    dtypes = one.settings.runtime.dtype, other.settings.runtime.dtype
    if all(dtypes) and dtypes[0] != dtypes[1]:
        said.append(f"computed in {text(dtypes[0])}, not {text(dtypes[1])}")
    budgets = one.plan.budget, other.plan.budget
    if budgets[0] != budgets[1] and not one.plan.like and not other.plan.like:
        said.append(f"planned for {text(budgets[0] or 'no budget')}, not {text(budgets[1] or 'no budget')}")
    if not run.finished:
        said.append(f"it is {text(one.status)}: what it reached is not its end")
    return said


def against(runs: list[Facts], names: list[str]) -> str:
    """Each run less the first, with the noise to expect."""
    base, seeds = runs[0], by_seed(runs)
    rows = [[key(color(0), text(names[0])), fixed(base.reached.bits_per_byte, 3), "baseline", "", "", "", ""]]
    sources = set()
    for index, (run, name) in enumerate(zip(runs[1:], names[1:], strict=True), 1):
        found = difference(run, base, seeds)
        sources.add(found.by_text.source)
        rows.append(
            [
                key(color(index), text(name)),
                fixed(run.reached.bits_per_byte, 3),
                f"<b>{signed(found.bits)}</b>",
                words.change(run.reached.bits_per_byte, base.reached.bits_per_byte),
                scattered(found.by_text),
                scattered(found.by_seed),
                f"{found.reading}{f' (noise up to {found.noise:.3f})' if found.noise is not None else ''}",
            ]
        )
    columns = ["run", "bits per byte", "difference", "in percent", "by the text", "by the seed", "reading"]
    lead = (
        f"Less {text(names[0])}, lower is better. Standard deviations of the difference: by the text "
        f"({text('; '.join(sorted(sources)))}), by the seed ({text(seeds.source)}). A difference counts as shown where "
        "it is more than chance alone makes in 95 % of cases; one run each is a hint and no proof."
    )
    return section("Beside the baseline", lead, table(columns, rows, {1, 2, 3, 4, 5}))


def signed(value: float | None) -> str:
    return words.MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def scattered(chance: Chance) -> str:
    return words.MISSING if chance.bits is None else f"± {chance.bits:.4f}"


def differences(runs: list[Facts], names: list[str]) -> str:
    """One row per slot or field in which the runs differ; those that do not decide what is learned are folded."""
    listed = [slots(facts.run.config) for facts in runs]
    fields = dict.fromkeys(field for config in listed for field in config)
    differing = [field for field in fields if len({config.get(field, words.MISSING) for config in listed}) > 1]
    if not differing:
        return section("Configuration", "The configurations are the same in every field.", "")
    heads = [key(color(index), text(name)) for index, name in enumerate(names)]

    def rows(chosen: list[str]) -> str:
        cells = [
            [f"<code>{text(field)}</code>", *(text(config.get(field, words.MISSING)) for config in listed)]
            for field in chosen
        ]
        return table(["field", *heads], cells)

    matters = [field for field in differing if field.partition(".")[0] not in BESIDE]
    beside = [field for field in differing if field not in matters]
    body = rows(matters) if matters else ""
    if beside:
        fold = f"<summary>{len(beside)} more that do not decide what is learned</summary>"
        body += f"<details>{fold}{rows(beside)}</details>"
    lead = f"The {len(differing)} fields in which the runs differ, a part of the model in one row."
    return section("Configuration", lead, body)


def slots(config: dict[str, Any]) -> dict[str, str]:
    """A configuration's fields by dotted name; a choice with its options, such as a part of the model, is one field."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if name == "model" and isinstance(value, dict):
            found |= {f"{name}.{slot}": choice(part) for slot, part in value.items()}
        elif name == "loss":
            found[name] = choice(value)
        else:
            found |= flatten(value, name)
    return found


def choice(value: Any) -> str:
    """A choice with its options on one line: moe (experts 3, top_k 2)."""
    if not isinstance(value, dict) or "name" not in value:
        return words.plain(value)
    options = ", ".join(f"{name} {words.plain(inner)}" for name, inner in value.items() if name != "name")
    return f"{words.plain(value['name'])} ({options})" if options else words.plain(value["name"])


def samples(runs: list[Facts], names: list[str]) -> str:
    """The last sample of each run, next to each other, prompt by prompt."""
    shown = list(zip(runs, names, strict=True))[:SAMPLES_SIDE_BY_SIDE]
    last = [{sample.prompt: sample for sample in facts.run.samples} for facts, _ in shown]
    prompts = dict.fromkeys(prompt for one in last for prompt in one)
    if not prompts:
        return ""
    parts = []
    for prompt in prompts:
        columns = []
        for index, ((_, name), one) in enumerate(zip(shown, last, strict=True)):
            sample = one.get(prompt)
            said = "nothing for this prompt" if sample is None else text(sample.text.removeprefix(prompt))
            if sample is not None and sample.reference is not None:
                said += f"\n({text(sample.reference)})"
            at = f"step {count(sample.step)}" if sample is not None else ""
            columns.append(
                f'<div>{key(color(index), text(name))} <small>{at}</small><pre class="box">{said}</pre></div>'
            )
        title = f"“{text(prompt)}”" if prompt.strip() else "From nothing"
        parts.append(f'<h3 class="prompt">{title}</h3>\n<div class="side">{"".join(columns)}</div>')
    left = len(runs) - len(shown)
    lead = "The last sample of each run." + (f" {left} more runs are not shown." if left else "")
    return section("What they write", lead, "\n".join(parts))


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as dotted fields with their values on one line."""
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for name, inner in value.items():
            found |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: words.plain(value)}
