"""The page of a ladder and its figures: what was found first, then what it rests on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.files import disk_errors, home, write_text
from isoflop.ladder import messages
from isoflop.ladder.fit import Climbed
from isoflop.ladder.store import Folder
from isoflop.ladder.targets import Target
from isoflop.plan.fitted import Fitted
from isoflop.plan.law.points import Points
from isoflop.plan.repetition import TOKENS_PER_PARAMETER
from isoflop.records.ledger import read_ledger
from isoflop.report import laws
from isoflop.report.laws import Curve
from isoflop.report.style import document, key, section, table
from isoflop.report.words import count, duration, fixed, percent, power, text

SIZES = 3  # at a budget, for its curve to be drawn
MOST_CURVES = 8
REACH = 4.0  # times the sizes of a curve's runs that its line reaches to
FARTHEST = 30.0  # times the compute of the largest run that frontiers are drawn to


def write(folder: Folder, found: Climbed, law: Fitted, targets: Sequence[Target]) -> None:
    """Write fit.json, the figures and the page.

    Raises:
        UserError: if one cannot be written.
    """
    drawn = figures(found, law, targets)
    with disk_errors(f"the ladder's folder {folder.path}"):
        write_text(folder.fit, law.path.read_text(encoding="utf-8"))
        for name, svg in drawn.items():
            write_text(folder.figure(name), svg)
        write_text(folder.report, page(found, law, targets, drawn))


def figures(found: Climbed, law: Fitted, targets: Sequence[Target]) -> dict[str, str]:
    """The figures as SVG, by name."""
    seen = law.seen()
    run_flops, run_loss = np.array(seen.runs or (), dtype=np.float64).reshape(-1, 2).T
    drawn = {
        "frontier": laws.frontier(run_flops, run_loss, seen.frontier or (), rows_of(targets), past_runs(law)),
        "size": laws.best_size(
            [run.flops or 0.0 for run in found.used],
            [run.parameters or 0 for run in found.used],
            best_sizes(found, law),
            TOKENS_PER_PARAMETER,
        ),
    }
    if curves := curves_of(found.study.fitted.points, found.study.basis.law):
        drawn = {"isoflop": laws.isoflop(curves), **drawn}
    return drawn


def curves_of(points: Points, law: Any) -> list[Curve]:
    """The budgets at which there are SIZES sizes or more, at most MOST_CURVES of them, the largest first kept."""
    made = []
    for group in points.budgets():
        some = points.select(group)
        if len(np.unique(some.n)) < SIZES:
            continue
        flops = float(np.exp(np.log(some.flops).mean()))
        line = np.geomspace(some.n.min() / math.sqrt(REACH), some.n.max() * math.sqrt(REACH), 60)
        best = float(law.n_star(flops))
        made.append(
            Curve(
                flops,
                some.n,
                some.loss,
                line,
                np.asarray(law.loss(line, law.tokens(line, flops))),
                (best, float(law.loss_star(flops))),
            )
        )
    return made[-MOST_CURVES:]


def best_sizes(found: Climbed, law: Fitted) -> list[tuple[float, float, float, float]]:
    """(FLOPs, N*, low, high) along compute."""
    samples = found.study.basis.samples
    made = []
    for flops in np.geomspace(law.about.smallest or 1e9, FARTHEST * law.largest, 24):
        one = samples.interval(lambda each, flops=flops: each.n_star(flops))  # type: ignore[misc]
        if all(math.isfinite(value) for value in (one.value, one.low, one.high)):
            made.append((float(flops), one.value, one.low, one.high))
    return made


def rows_of(targets: Sequence[Target]) -> list[tuple[float, float, float, float]]:
    """(FLOPs, bits per byte, low, high) of the targets that a run can be planned for."""
    made = []
    for target in targets:
        advice = target.advice
        if advice is not None and advice.expected is not None and advice.expected.bits_per_byte is not None:
            one = advice.expected
            made.append((advice.flops, one.bits_per_byte or 0.0, one.low or 0.0, one.high or 0.0))
    return made


def past_runs(law: Fitted) -> list[tuple[float, float]]:
    """(FLOPs, bits per byte) of the planned runs on the same data that have ended."""
    outcomes = read_ledger(home() / "ledger.jsonl").outcomes
    return [
        (one.flops, one.reached_bits_per_byte)
        for one in outcomes
        if one.fingerprint == law.about.fingerprint and one.flops and one.reached_bits_per_byte
    ]


def page(found: Climbed, law: Fitted, targets: Sequence[Target], drawn: dict[str, str]) -> str:
    """The whole HTML page."""
    parts = [
        header(found, law),
        forecasts(targets),
        pictures(drawn, bool(past_runs(law))),
        constants(found),
        rates(found),
        runs(found),
        "<footer>Made by isoflop ladder. Loss in bits per byte of held-out text, FLOPs as 6 N D, N: blocks and head."
        "</footer>",
    ]
    return document(f"{law.about.corpus or 'text'}: isoflop ladder", "\n".join(part for part in parts if part))


def header(found: Climbed, law: Fitted) -> str:
    about = law.about
    took = sum(run.seconds or 0.0 for run in (*found.used, *found.diverged))
    return (
        f'<header>\n<div class="top"><h1>{text(about.corpus or "text")}: a ladder</h1></div>\n'
        f'<p class="story">A law fitted to {about.runs} runs on this text, of {power(about.smallest)} to '
        f"{power(about.largest)} FLOPs, which took {duration(took)} of one worker. It holds for this text, its "
        f"tokenizer of {count(about.ids)} ids, a context of {count(about.context)} and this recipe.</p>\n</header>"
    )


def forecasts(targets: Sequence[Target]) -> str:
    if not targets:
        return ""
    rows = []
    for target in targets:
        advice = target.advice
        if advice is None or advice.expected is None:
            rows.append([text(target.budget.words()), text(target.why), "", "", "", ""])
            continue
        one, model = advice.expected, advice.config.model
        rows.append(
            [
                text(target.budget.words()),
                f"{model.layers} × {model.d_model}",
                count(advice.parameters),
                count(advice.tokens),
                f"<b>{fixed(one.bits_per_byte, 3)}</b><br><small>{fixed(one.low, 3)} to {fixed(one.high, 3)}</small>",
                f"{target.beyond:.2g} times",
            ]
        )
    heads = ["budget", "shape", "parameters", "tokens", "bits per byte expected", "compute of the largest run"]
    lead = "What isoflop train would train with these budgets, and what it should reach, with a 90 % interval."
    return section("What larger budgets buy", lead, table(heads, rows, {2, 3, 4, 5}))


def pictures(drawn: dict[str, str], has_past: bool) -> str:
    said = {
        "isoflop": (
            "Equal compute, several sizes",
            "Dots: runs of equal compute. Lines: the law. Upright marks: the best size at each compute.",
        ),
        "frontier": (
            "Loss against compute",
            key("train", "runs of the ladder")
            + key("expected", "the least loss by the law, with the interval of one run", band=True)
            + (key("heldout", "finished runs on this text") if has_past else ""),
        ),
        "size": (
            "How large a model",
            key("expected", "the best size by the law, with its interval", band=True)
            + key("muted", f"{TOKENS_PER_PARAMETER:.0f} tokens per parameter")
            + key("train", "runs of the ladder"),
        ),
    }
    return "\n".join(
        section(said[name][0], "", f"<figure>{svg}<figcaption>{said[name][1]}</figcaption></figure>")
        for name, svg in drawn.items()
    )


def constants(found: Climbed) -> str:
    """The law's constants with their intervals, and its doubts."""
    samples = found.study.samples
    rows = []
    for name in ("E", "A", "B", "alpha", "beta", "a"):
        one = samples.interval(lambda law, name=name: getattr(law, name))  # type: ignore[misc]
        rows.append([name, messages.shown(one.value), f"{messages.shown(one.low)} to {messages.shown(one.high)}"])
    said = "".join(f"<li>{text(line.strip())}</li>" for line in messages.law_lines(found)[2:])
    lead = "Bits per byte = E + A / N^alpha + B / D^beta. The best N grows as compute to the power of a."
    return section("The law", lead, table(["", "value", "90 % interval"], rows, {1, 2}) + f"<ul>{said}</ul>")


def rates(found: Climbed) -> str:
    """Losses at the learning rates that were tried, and whether the rule carries over."""
    brackets = found.transfer.brackets
    factors = sorted({factor for one in brackets for factor in one.tried})
    if not brackets:
        return ""
    rows = [
        [
            count(one.parameters),
            *(fixed(one.tried[factor], 4) if factor in one.tried else "" for factor in factors),
            f"× {one.best:.2f}<br><small>{one.low:.2f} to {one.high:.2f}</small>",
        ]
        for one in brackets
    ]
    heads = ["parameters", *(f"× {factor:g}" for factor in factors), "best"]
    said = "".join(f"<p>{text(line)}</p>" for line in messages.transfer_lines(found.transfer)[len(brackets) :])
    lead = "Held-out bits per byte at factors of the plan's learning rates, at two sizes."
    return section("Learning rates", lead, table(heads, rows, set(range(1, len(heads)))) + said)


def runs(found: Climbed) -> str:
    rows = [
        [
            f"{run.layers} × {run.d_model}",
            count(run.parameters),
            count(run.tokens),
            power(run.flops),
            f"{run.seed}",
            fixed(run.bits_per_byte, 4),
            percent(residual, 2).replace("-", "−") if residual is not None else "",
            duration(run.seconds),
        ]
        for run, residual in [
            *zip(found.used, [float(value) for value in found.study.fitted.residuals], strict=True),
            *((run, None) for run in found.diverged),
        ]
    ]
    heads = ["shape", "parameters", "tokens", "FLOPs", "seed", "bits per byte", "off the law", "seconds of a worker"]
    body = table(heads, rows, set(range(1, len(heads))))
    return section("The runs", "", f"<details><summary>All {len(rows)} runs</summary>{body}</details>")
