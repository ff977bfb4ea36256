"""Write the tables of docs/ from the records in bench/results/.

    python bench/tables.py           # write them
    python bench/tables.py --check   # exit 1 if a page is not up to date

A page has a table between `<!-- bench: NAME -->` and `<!-- end of bench: NAME -->`; the rest of it is not changed.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from isoflop.files import write_text
from record import ROOT, read

PAGES = (
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "where-the-time-goes.md",
    ROOT / "docs" / "many-machines.md",
    ROOT / "docs" / "on-a-gpu.md",
    ROOT / "docs" / "recipe.md",
    ROOT / "docs" / "what-can-go-wrong.md",
    ROOT / "docs" / "lab.md",
    ROOT / "docs" / "decoding.md",
    ROOT / "docs" / "evaluation.md",
)
PLACE = re.compile(r"(<!-- bench: (?P<name>[\w-]+) -->\n).*?(<!-- end of bench: (?P=name) -->)", re.DOTALL)
SPEED = {"S": 1.6, "M": 1.7, "L": 2.2}  # times nanoGPT's tokens per second at its CPU default
BEST_MODE = 1.2  # times those of its best mode
PEAK_SHARE = {"S": 0.5, "M": 0.85, "L": 0.85}
PATH = 1.6  # times our own tokens per second before
MEMORY = {"L": 0.75}  # of nanoGPT's
RACE = 0.25  # of its seconds
RACE_NANOCHAT = 0.5  # of nanochat's, tuned for the budget
DECODING = {1: 1.3, 16: 2.0}  # times transformers' tokens per second, by batch
MANY = 10.0  # times the tokens per second of the engine before
BANDWIDTH = 0.9  # of the read bandwidth at batch 1, where DECODING's speed is not reached
PREPARING = 0.9  # of encode_batch's megabytes per second
SECOND_START = 5.0  # seconds
BRIEF_NEIGHBOUR = 1.02  # relative to the loss alone, next to a program that stops after a quarter of the budget
CARD_MFU = {"124M": 0.48, "1.5B": 0.52}  # MFU on one H100: PaLM's count over the data sheet's dense bfloat16 peak
CARD_SPEED = 1.5  # times nanoGPT's tokens per second on the same card
LAB_EFFECT = ("effect that so many pairs promise to find", "effect at 80 % power")  # recorded, and in the table
CARD_RACE = 0.25  # of nanoGPT's seconds to its loss, on the same card


def provenance(result: dict[str, Any]) -> str:
    """The command, commit, date and machine of a table."""
    machine = result["machine"]
    peers = "".join(f", {name} {version}" for name, version in result["peers"].items())
    card = f"{machine['gpu']}, CUDA {machine['cuda']}, " if "gpu" in machine else ""
    return (
        f"`{result['command']}` at commit {result['commit']} on {result['date']}: {card}{machine['processor']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}{peers}."
    )


def lines(head: list[str], rows: list[list[str]], after: int = 1) -> str:
    """A Markdown table; all columns but the first `after` are right-aligned."""
    rule = ["---" if index < after else "---:" for index in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def paths(result: dict[str, Any]) -> str:
    """Our own step by part: speed relative to torch's operations, or to another checkout, and the operations."""
    rows = []
    for row in result["rows"]:
        ways, base = row["ways"], row["base"]
        parts = " ".join(
            f"{name} {ways[name]['ratio']:.2f}" for name in ("blocks", "loss", "optimizer") if name in ways
        )
        before = ways["torch"]["operations"]
        rows.append(
            [
                f"{row['shape']}, {row['dtype']}",
                f"{ways[base]['tokens_per_second']:,}",
                f"{ways['all']['tokens_per_second']:,}",
                f"{ways['all']['ratio']:.2f} ({PATH})",
                parts,
                f"{before:,} to {ways['all']['operations']:,}",
            ]
        )
    head = ["shape", "tokens/s before", "now", "ratio (target)", "each part alone", "operations of a step"]
    return f"{lines(head, rows)}\n\nSeconds of the {result['clock']} clock. {provenance(result)}"


def step(result: dict[str, Any]) -> str:
    """Speed, share of peak and memory next to each trainer, with the targets."""
    rows = []
    for row in result["rows"]:
        size, trainers = row["size"], row["trainers"]
        ours = {who: one for who, one in trainers.items() if who in ("isoflop float32", "isoflop bfloat16")}
        mine = max(ours.values(), key=lambda one: one["tokens_per_second"])
        best = max((o["tokens_per_second"], who) for who, o in trainers.items() if who.startswith("nanogpt"))[1]
        default, mode = trainers["nanogpt"], best.removeprefix("nanogpt ").replace("nanogpt", "default")
        rows.append(
            [
                f"{size}: {row['shape']}",
                f"{mine['tokens_per_second']:,.0f}",
                f"{default['slower_than_isoflop']:.2f} ({SPEED[size]})",
                f"{trainers[best]['slower_than_isoflop']:.2f} ({BEST_MODE}): {mode}",
                f"{mine['peak_share']:.2f} ({PEAK_SHARE[size]})",
                f"{default['peak_share']:.2f}",
                memory(mine, default, MEMORY.get(size)),
            ]
        )
    head = [
        "size",
        "tokens/s",
        "times nanoGPT",
        "times its best mode",
        "of the peak",
        "nanoGPT's",
        "memory",
    ]
    peaks = {dtype: max(by_shape.values()) for dtype, by_shape in result["peak"].items()}
    said = ", ".join(f"{dtype} {value / 1e9:.0f}" for dtype, value in peaks.items())
    notes = [f"Best matrix products, GFLOP/s: {said}. In brackets: the targets. {provenance(result)}"]
    notes += [
        f"{row['size']} {who}: did not run ({why})." for row in result["rows"] for who, why in row["missing"].items()
    ]
    also = [
        f"{row['size']} {who.removeprefix('isoflop ')}: {one['tokens_per_second']:,.0f} tokens/s, "
        f"{one['peak_bytes'] / 2**20:,.0f} MiB."
        for row in result["rows"]
        for who, one in row["trainers"].items()
        if who.startswith("isoflop") and who.count(" ") > 1
    ]
    return lines(head, rows) + "\n\n" + "\n".join([*notes, *also])


def memory(mine: dict[str, Any], other: dict[str, Any], target: float | None) -> str:
    share = mine["peak_bytes"] / other["peak_bytes"]
    wanted = f" ({target})" if target else ""
    return f"{mine['peak_bytes'] / 2**20:,.0f} MiB, {share:.2f}{wanted}"


def race(result: dict[str, Any]) -> str:
    theirs = result["nanogpt"]
    rows = [["nanoGPT's CPU recipe", f"{theirs['seconds']:.0f}", f"{theirs['bits_per_byte']:.3f}", ""]]
    rows += [
        [
            f"isoflop, {run['shape']}",
            f"{run['seconds']:.0f}",
            f"{run['bits_per_byte']:.3f}",
            f"{run['seconds'] / theirs['seconds']:.2f}",
        ]
        for run in result["isoflop"]
    ]
    found = "not reached" if result["share"] is None else f"reached after {result['share']:.2f} of its seconds"
    said = f"Its held-out bits per byte: {found} (target {RACE}). {provenance(result)}"
    return lines(["run", "seconds", "held-out bits per byte", "of nanoGPT's seconds"], rows) + "\n\n" + said


def race_nanochat(result: dict[str, Any]) -> str:
    """For each text and budget nanochat's figures, and our seconds to them: medians over the seeds, and all of them."""
    rows = []
    for row in result["rows"]:
        recipe, seeds = row["recipe"], row["seeds"]
        took = [seed["nanochat"]["seconds"] for seed in seeds]
        rows.append(
            [
                f"{row['text']}, {row['bytes']['train'] / 1e6:.0f} MB",
                f"{recipe['depth']} x {recipe['width']}, context {recipe['context']}, {recipe['vocabulary']} ids, "
                f"batches of {recipe['batch']}, rates times {recipe['rates']:.3g}, {recipe['dtype']}"
                + (", compiled" if recipe["compile"] else ""),
                f"{median(took):.0f}",
                *(spread([seed["nanochat"][figure] for seed in seeds], "{:.3f}") for figure in ("begun", "running")),
                *(seconds_reached(row, figure) for figure in ("begun", "running")),
                reached_share(row, "begun"),
            ]
        )
    head = ["text", "nanochat", "seconds", "bits per byte, windows begun with BOS", "running windows"]
    head += ["isoflop's seconds to the former", "to the latter", f"of nanochat's seconds (target {RACE_NANOCHAT})"]
    said = list(dict.fromkeys(provenance(row) for row in result["rows"]))
    note = "Medians over the seeds, in brackets the least and the most. isoflop is judged in running windows."
    return "\n\n".join([lines(head, rows, after=2), " ".join([note, *said])])


def spread(values: list[float], form: str) -> str:
    """The median, and the least and the most if there are several."""
    around = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
    return form.format(median(values)) + around


def seconds_reached(row: dict[str, Any], figure: str) -> str:
    """Our seconds to a figure of nanochat's: at most these where our shortest run was as good already."""
    reached = [seed["seconds"][figure] for seed in row["seeds"]]
    if None in reached:
        return f"not reached by {reached.count(None)} of {len(reached)} seeds"
    return at_most(row, figure) + spread(reached, "{:.0f}")


def at_most(row: dict[str, Any], figure: str) -> str:
    first = [seed["isoflop"][0]["bits_per_byte"] <= seed["nanochat"][figure] for seed in row["seeds"]]
    return "at most " if any(first) else ""


def reached_share(row: dict[str, Any], figure: str) -> str:
    reached = [(seed["seconds"][figure], seed["nanochat"]["seconds"]) for seed in row["seeds"]]
    if any(ours is None for ours, _ in reached):
        return "not reached"
    return at_most(row, figure) + spread([ours / theirs for ours, theirs in reached], "{:.2f}")


def overhead(result: dict[str, Any]) -> str:
    parts = result["parts"]
    rows = [[name, f"{seconds:.2f} s", f"{seconds / result['seconds']:.2%}"] for name, seconds in parts.items()]
    rows.append(["in all", f"{sum(parts.values()):.2f} s", f"{result['share']:.2%} ({result['target']:.0%})"])
    said = f"{result['shape']}, {result['steps']:,} steps in {result['seconds']:.1f} s. {provenance(result)}"
    return lines(["outside the steps", "in a run", "of its seconds (target)"], rows) + "\n\n" + said


def where(result: dict[str, Any]) -> str:
    dtype = result.get("dtype", "float32")
    said = (
        f"Ceilings: {result['flops_per_second'] / 1e9:,.0f} GFLOP/s in {dtype} matrix products, "
        f"{result['bytes_per_second'] / 1e9:.1f} GB/s of memory. {provenance(result)}"
    )
    blocks = [said]
    for row in result["rows"]:
        title = (
            f"**{row['size']}** ({row['shape']}): {1e3 * row['seconds_per_step']:,.1f} ms per step, "
            f"{row['flops_per_step'] / 1e9:,.1f} GFLOP, {row['peak_share']:.0%} of the peak"
        )
        total = row["seconds_per_step"]
        rows = [
            [
                part["part"],
                f"{1e3 * part['seconds']:,.2f}",
                f"{part['seconds'] / total:.1%}",
                f"{part['operations'] / 1e9:,.2f}",
                f"{part['bytes'] / 1e6:,.0f}",
                f"{1e3 * part['seconds_at_ceiling']:,.2f}",
                f"{part['seconds_at_ceiling'] / part['seconds']:.0%}" if part["seconds"] else "",
            ]
            for part in row["parts"]
        ]
        least = sum(part["seconds_at_ceiling"] for part in row["parts"])
        rows.append(["all", f"{1e3 * total:,.2f}", "", "", "", f"{1e3 * least:,.2f}", f"{least / total:.0%}"])
        head = ["part", "ms", "share", "GFLOP", "MB", "ms at the ceiling", "of the ceiling"]
        blocks.append(f"{title}\n\n{lines(head, rows)}")
    return "\n\n".join(blocks)


def decode(result: dict[str, Any]) -> str:
    rows = [
        [
            f"batch {row['batch']}, {row['dtype']}",
            f"{row['ours_tokens_per_second']:.1f}",
            f"{row['theirs_tokens_per_second']:.1f}",
            f"{row['ratio']:.2f} ({DECODING[row['batch']]})" if row["batch"] in DECODING else f"{row['ratio']:.2f}",
            f"{row['share_of_read_bandwidth']:.2f}" + (f" ({BANDWIDTH})" if row["batch"] == 1 else ""),
            fastest(row.get("by_dtype", {}).get("ours", {row["dtype"]: row["ours_tokens_per_second"]})),
        ]
        for row in result["rows"]
    ]
    head = ["GPT-2 124M's shape", "tokens/s", "transformers'", "ratio (target)", "of the read bandwidth (target)"]
    head.append("in our faster dtype")
    return lines(head, rows) + f"\n\n{provenance(result)}"


def many(result: dict[str, Any]) -> str:
    rows = [
        [way, f"{one['ours']:,.0f}", f"{one['previous']:,.0f}", f"{one['ratio']:.1f} ({MANY:.0f})"]
        for way, one in result["ways"].items()
    ]
    rows.append(["products alone, and one read of keys and values", f"{result['floor']:,.0f}", "", ""])
    head = ["256 prompts", "tokens/s", "before", "ratio (target)"]
    clock = ", processor seconds on a busy machine" if result["clock"] == "processor" else ""
    return lines(head, rows) + f"\n\n{provenance(result).removesuffix('.')}{clock}."


def lm_eval_parity(result: dict[str, Any]) -> str:
    """Accuracy of both, the choices that differ, and the speed of both."""
    rows = [
        [
            row["suite"],
            f"{row['items']:,}",
            f"{100 * row['ours']:.1f} %",
            f"{100 * row['lm_eval']:.1f} %",
            ", ".join(str(len(items)) for items in row["differing"].values()),
            f"{row['furthest_nats']:.1e}",
        ]
        for row in result["rows"]
    ]
    metrics = " and ".join(name.replace("_", " ") for name in result["rows"][0]["differing"])
    head = ["suite", "items", "ours", "lm-eval", f"choices that differ, by {metrics}", "furthest, nats"]

    items, seconds = sum(row["items"] for row in result["rows"]), result["seconds"]
    speeds = f"Items per second: ours {items / seconds['ours']:.1f}, lm-eval {items / seconds['lm_eval']:.1f}."
    return lines(head, rows) + f"\n\n{speeds} {provenance(result)}"


def suites(result: dict[str, Any]) -> str:
    """Each suite's score with its 95 % interval, a column per run, next to chance and to a published figure."""
    names = list(result["runs"])
    rows = []
    for suite in result["suites"]:
        items = f"{suite['items']:,}" + ("" if suite["whole"] else " of more")
        chance = "" if suite["chance"] is None else f"{100 * suite['chance']:.0f}"
        scores = [scored(suite["scores"][name]) for name in names]
        rows.append([suite["suite"], suite["metric"].replace("_", " "), items, *scores, chance, suite["published"]])
    return lines(["suite", "metric", "items", *names, "chance", "published"], rows, 2) + f"\n\n{provenance(result)}"


def scored(interval: dict[str, float]) -> str:
    value, low, high = (interval[name] for name in ("score", "low", "high"))
    if value > 1:  # a perplexity
        return f"{value:,.0f} ({low:,.0f} to {high:,.0f})"
    return f"{100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def fastest(by_dtype: dict[str, float]) -> str:
    dtype = max(by_dtype, key=lambda name: by_dtype[name])
    return f"{by_dtype[dtype]:.1f}, {dtype}"


def prepare(result: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['text']}, {row['text_bytes'] / 1e6:.0f} MB",
            f"{row['ours']['bytes_per_second'] / 1e6:.2f}",
            f"{row['theirs']['bytes_per_second'] / 1e6:.2f}",
            f"{row['ratio']:.2f} ({PREPARING})",
            f"{row['ours']['peak_bytes'] / 2**20:,.0f} and {row['theirs']['peak_bytes'] / 2**20:,.0f} MiB",
        ]
        for row in result["rows"]
    ]
    head = ["text", "MB/s, compressed to shards", "encode_batch in memory", "ratio (target)", "memory"]
    return lines(head, rows) + f"\n\n{provenance(result)}"


def start(result: dict[str, Any]) -> str:
    seconds, median = result["seconds"], f"{result['median']:.1f} s (under {SECOND_START:.0f})"
    rows = [[result["shape"], median, f"{min(seconds):.1f} to {max(seconds):.1f}"]]
    return lines(["second start", "to the end of the first step", "all"], rows) + f"\n\n{provenance(result)}"


def neighbours(result: dict[str, Any]) -> str:
    """The cost of other programs on the machine, relative to the same run alone."""
    about = {
        "alone": "nothing",
        "loop": "a loop in one thread, all the time",
        "torch": "torch in two threads, all the time",
        "start": f"torch in two threads, from the calibration on for {result['budget'] / 4:.0f} s",
    }
    alone = result["rows"]["alone"]
    rows = []
    for kind, found in result["rows"].items():
        pairs = list(zip(found, alone, strict=True))
        losses = [one["bits_per_byte"] / other["bits_per_byte"] for one, other in pairs]
        tokens = [one["tokens"] / other["tokens"] for one, other in pairs]
        target = f" (at most {BRIEF_NEIGHBOUR})" if kind == "start" else ""
        rows.append(
            [
                about[kind],
                f"{median(losses):.3f}{target}",
                f"{min(losses):.3f} to {max(losses):.3f}",
                f"{median(tokens):.0%}",
                f"{sum(one['attempts'] > 1 for one in found)} of {len(found)}",
                f"{median(one['seconds'] + one['phases'].get('abandoned', 0) for one in found):.1f}",
            ]
        )
    head = ["next to the run", "loss, relative to the run alone", "all", "tokens", "planned anew", "seconds of budget"]
    said = f"Budgets of {result['budget']:g} s, one seed, medians of {result['pairs']} pairs."
    return f"{lines(head, rows)}\n\n{said} {provenance(result)}"


def scaling(result: dict[str, Any]) -> str:
    """The speed of two processes relative to one with both threads; the bytes sent per process next to the least."""

    def shares(ratios: list[float]) -> str:
        return f"{median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"

    times = [
        [row["shape"], f"{1e3 * median(row['seconds_alone']):,.0f} ms", *map(shares, row["ratios"].values())]
        for row in result["time"]
    ]
    head = ["size", "one process, per step", *(f"{mode}, two processes" for mode in result["time"][0]["ratios"])]
    sent = [
        [
            f"{row['mode']}, {row['processes']} processes, {row['optimizer']}",
            f"{row['sent'] / 1e6:.2f} MB",
            f"{row['least'] / 1e6:.2f} MB",
            f"{row['sent'] / row['least']:.2f}",
        ]
        for row in result["bytes"]
    ]
    table = lines(["sent per process and step", "counted", "the least", "ratio"], sent)
    return f"{lines(head, times)}\n\n{table}\n\n{provenance(result)}"


def gpu(result: dict[str, Any]) -> str:
    """Each size's trainers, ours first, and the race."""
    rows = []
    for row in result["rows"]:
        for who, one in row["trainers"].items():
            wanted = CARD_MFU.get(row["size"]) if who == "isoflop" else None
            mfu = "" if one["mfu"] is None else f"{one['mfu']:.1%}" + (f" ({wanted:.0%})" if wanted else "")
            times = f"{one['isoflop_is_times_as_fast']:.2f}"
            rows.append(
                [
                    f"{row['size']} {who}",
                    f"{one['tokens_per_second']:,.0f}",
                    mfu,
                    f"{one['of_measured_peak']:.1%}",
                    "" if who == "isoflop" else f"{times} ({CARD_SPEED})" if who.startswith("nanogpt") else times,
                    f"{one['peak_bytes'] / 2**30:.1f} GiB",
                ]
            )
        rows += [[f"{row['size']} {who}", "did not run", "", "", "", ""] for who in row["missing"]]
    head = ["trainer", "tokens/s", "MFU (target)", "of the best product", "isoflop is times as fast (target)", "memory"]
    found = result["race"]
    if found is None:
        said = "The race was not run."
    elif found["share"] is None:
        said = f"Seconds to nanoGPT's held-out loss: not reached (target {CARD_RACE} of its seconds)."
    else:
        said = f"Seconds to nanoGPT's held-out loss: {found['share']:.2f} of its own (target {CARD_RACE})."
    return lines(head, rows) + f"\n\n{said} {provenance(result)}"


def card(result: dict[str, Any]) -> str:
    """The results of bench/card.py, one table per stage with its commit; failures as recorded."""
    blocks = []
    for name, stage in result["stages"].items():
        where = f"commit {stage['commit']}, {stage['date']}"
        title = f"**{name}**: {stage['about']} ({stage['status']}, {stage['seconds']:.0f} s; {where})"
        rows = [
            [
                row["what"].replace("|", "/"),
                card_value(row),
                row.get("target", ""),
                row.get("note", "").replace("|", "/"),
            ]
            for row in stage["rows"]
        ]
        said = [f"Last line: `{stage['last_lines'][-1]}`"] if stage.get("last_lines") else []
        blocks.append("\n\n".join([title, *([lines(["what", "value", "target", ""], rows)] if rows else []), *said]))
    return "\n\n".join([*blocks, f"Last call: `{result['command']}`."])


def card_value(row: dict[str, Any]) -> str:
    value = row["value"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return " ".join(word for word in (f"{value:,}" if number else str(value), row.get("unit", "")) if word)


def recipe(result: dict[str, Any]) -> str:
    """The worth of each change of the default recipe, the best first."""
    rows = [
        [arm, f"{ratio:.2f}", f"{mean:+.4f}", f"{mean - half:+.4f} to {mean + half:+.4f}", f"{seeds}", verdict]
        for arm, ratio, mean, half, seeds, verdict in result["rows"]
    ]
    losses = list(result["default"].values())
    said = (
        f"The default: {sum(losses) / len(losses):.4f} bits per byte held-out, {result['tokens']:,.0f} tokens, "
        f"{len(losses)} seeds. {provenance(result)}"
    )
    head = ["changed", "tokens/s", "bits per byte", "95 % interval", "seeds", "verdict"]
    return f"{said}\n\n{lines(head, rows)}"


def lab(result: dict[str, Any]) -> str:
    """The verdict on each claim, with what was found of each of its predictions."""
    rows = [
        [
            f"`{row['claim']}`",
            f"**{row['verdict']}**",
            "<br>".join(
                f"{one['prediction']}: {one['found']}"
                + (f", {one['verdict']}" if len(row["predictions"]) > 1 else "")
                + (" (told aside)" if one.get("aside") else "")
                for one in row["predictions"]
            ),
            f"{row['pairs']}",
            f"{row['process_seconds'] / 60:.0f}" if row["process_seconds"] >= 60 else "< 1",
        ]
        for row in result["rows"]
    ]
    machines = ", ".join(sorted({machine for row in result["rows"] for machine in row["machines"]}))
    said = f"Runs at commit {result['runs_at']} on {machines}. {provenance(result)}"
    head = ["claim", "verdict", "each prediction, what was found and its 95 % interval", "pairs", "process minutes"]
    return lines(head, rows, 3) + f"\n\n{said}"


def lab_stats(result: dict[str, Any]) -> str:
    """How often the lab's tests did what they should, next to the nominal rate; a column for each number of pairs."""
    by_row: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        by_row.setdefault((row["what"], row["of"], row["promise"]), {})[row["pairs"]] = row
    sizes = sorted({pairs for found in by_row.values() if len(found) > 1 for pairs in found})
    rows, others = [], []
    for (recorded, of, promise), found in by_row.items():
        what = recorded.replace(*LAB_EFFECT)
        if found.keys() <= set(sizes) and len(found) > 1:
            rows.append([what, of, promise, *(rate(found[pairs]) if pairs in found else "" for pairs in sizes)])
        else:
            others += [[what, of, promise, f"{pairs}", rate(row)] for pairs, row in found.items()]
    tables = [lines(["studies in which", "differences", "nominal", *(f"{size} pairs" for size in sizes)], rows, 3)]
    tables += [lines(["studies in which", "differences", "nominal", "pairs", "share"], others, 3)] if others else []
    studies = max(row["studies"] for row in result["rows"])
    pool = ""
    if "noise" in result:
        pool = (
            f"The pool: {result['orders']} orders of the data, {result['per_order']} runs of each, "
            f"{result['mean']:.3f} bits per byte on average; two runs of one order differ by {result['noise']:.4f} "
            "(standard deviation). "
        )
    said = f"{pool}Up to {studies:,} studies, a twentieth of that where a study takes long. {provenance(result)}"
    return "\n\n".join([*tables, said])


def rate(row: dict[str, Any]) -> str:
    """A share with its interval, in percent."""
    return f"{100 * row['share']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "step": step,
    "paths": paths,
    "step-epyc": step,
    "race": race,
    "race-epyc": race,
    "race-nanochat": race_nanochat,
    "overhead": overhead,
    "where": where,
    "where-bfloat16": where,
    "decode": decode,
    "decode-epyc": decode,
    "many": many,
    "lm_eval_parity": lm_eval_parity,
    "suites": suites,
    "prepare": prepare,
    "start": start,
    "start-plan": start,
    "neighbours": neighbours,
    "scaling": scaling,
    "recipe": recipe,
    "gpu": gpu,
    "card": card,
    "lab": lab,
    "lab_stats-pool": lab_stats,
    "lab_stats-simulate": lab_stats,
}


def rendered(page: Path) -> str:
    """A page with its tables as recorded. A table without a record says so."""

    def fill(place: re.Match[str]) -> str:
        name = place["name"]
        result = read(name)
        script = name.partition("-")[0]
        table = TABLES.get(name) or TABLES[script]
        body = table(result) if result else f"Not measured yet: see `python bench/{script}.py --help`."
        return f"{place[1]}{body}\n{place[3]}"

    return PLACE.sub(fill, page.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page would change")
    given = parser.parse_args()
    changed = [page for page in PAGES if rendered(page) != page.read_text(encoding="utf-8")]
    for page in changed:
        if not given.check:
            write_text(page, rendered(page))
        print(f"{page.relative_to(ROOT)} {'differs from bench/results' if given.check else 'written'}")
    sys.exit(bool(changed) and given.check)


if __name__ == "__main__":
    main()
