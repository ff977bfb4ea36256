"""Several runs on one page: a table, their held-out curves against three costs, and how their configurations differ."""

from collections import Counter
from typing import Any

from isoflop.report import figures, words
from isoflop.report.facts import Facts, column
from isoflop.report.figures import RUN_COLORS
from isoflop.report.style import document, key, section, table
from isoflop.report.words import count, duration, fixed, power, text

COSTS = (("tokens", "tokens read", False), ("seconds", "seconds of training", False), ("flops", "FLOPs (6 N D)", True))


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
    body = [head, overview(runs, names), curves(runs, names), differences(runs, names)]
    return document(title, "\n".join(body))


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


def differences(runs: list[Facts], names: list[str]) -> str:
    flattened = [flatten(facts.run.config) for facts in runs]
    fields = dict.fromkeys(field for config in flattened for field in config)
    differing = [field for field in fields if len({config.get(field, words.MISSING) for config in flattened}) > 1]
    if not differing:
        return section("Configuration", "The configurations are the same in every field.", "")
    heads = [key(color(index), text(name)) for index, name in enumerate(names)]
    rows = [
        [f"<code>{text(field)}</code>", *(text(config.get(field, words.MISSING)) for config in flattened)]
        for field in differing
    ]
    return section(
        "Configuration", f"The {len(differing)} fields in which the runs differ.", table(["field", *heads], rows)
    )


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested objects as dotted fields with their values on one line."""
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for name, inner in value.items():
            found |= flatten(inner, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: words.plain(value)}
