"""Training steps on a GPU: MFU and share of the measured peak, next to nanoGPT.

    python bench/gpu.py [--nanogpt FOLDER] [--text SOURCE --budget 10m] [--sizes 124M 1.5B] [--also muon eager]
                        [--rounds 5] [--json]

For each size (GPT-2's 124M and 1.5B with nanoGPT's settings: context 1,024, 480 sequences per step, AdamW, bfloat16,
compiled blocks) the number of sequences per pass is chosen first: the most that fit in the GPU's memory, or the next
smaller number if that is faster. Then the trainers take turns, one process at a time on the GPU: it compiles, warms up,
takes some steps and ends. Each round gives one ratio; the printed ones are medians over rounds. nanoGPT's train.py runs
unchanged, in passes of 12 as by default, and in passes as large as ours. MFU is PaLM's count of operations (6 N +
12 L H Q T per token) over the GPU's dense bfloat16 peak in its data sheet (isoflop/runtime.py, CARDS); next to it are
the same operations over the best matrix product measured in this run.

With --text, race.py's race is run on this GPU: seconds to the held-out loss that nanoGPT's recipe reaches.

--device cpu --sizes tiny runs all of it on a computer without a GPU, as a rehearsal; its numbers mean nothing.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import UserError
from isoflop.model.count import flops_per_token
from isoflop.runtime import card_peak, measure_peak
from race import race
from record import record, version
from shapes import CARD_SIZES, Size, nanogpt_model
from tables import CARD_MFU, CARD_RACE, CARD_SPEED
from turns import Turns, random_tokens, ratio, take_turns_alone

# Sequences per pass to try, largest first; each divides the sequences per step
PASSES = {"124M": (96, 60, 40, 24, 12, 8, 4, 2, 1), "1.5B": (24, 16, 12, 8, 6, 4, 2, 1), "tiny": (4, 2)}
NANOGPT_PASS = {"124M": 12, "1.5B": 12, "tiny": 2}  # train.py's own batch_size
TRIED = 2  # the number of sizes that fit and are timed
ALSO = {"muon": {"optimizer": "muon"}, "eager": {"compile": False}, "recompute": {"recompute": True}}


def ours(name: str, given: argparse.Namespace, tokens: Path) -> dict[str, Any]:
    """The specification of our trainer for contender.py, without the sequences per pass."""
    dtype, compiled = ("float32", False) if given.device == "cpu" else ("bfloat16", True)
    return {
        "trainer": "isoflop",
        "size": name,
        "tokens": str(tokens),
        "device": given.device,
        "dtype": dtype,
        "compile": compiled,
        "preflight": False,  # sizes that do not fit are tried all the same
    }


def choose_pass(spec: dict[str, Any], passes: tuple[int, ...], steps: int, folder: Path) -> tuple[int, dict[int, str]]:
    """The fastest of the TRIED largest passes that fit, and why larger ones did not run.

    Raises:
        UserError: if none runs.
    """
    refused: dict[int, str] = {}
    times: dict[int, float] = {}
    for micro in passes:
        done, missing = take_turns_alone({"ours": {**spec, "micro": micro}}, steps, 1, folder, warm_up=2)
        if missing:
            refused[micro] = last_line(missing["ours"])
            continue
        times[micro] = done["ours"].median
        if len(times) == TRIED:
            break
    if not times:
        raise UserError(f"no pass of size {spec['size']} runs on {spec['device']}: {list(refused.values())[-1]}")
    return min(times, key=lambda micro: times[micro]), refused


def last_line(text: str) -> str:
    """The last informative line of a process's output, shortened."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line] or lines
    return told[-1].strip()[:200]


def contenders(name: str, given: argparse.Namespace, tokens: Path, micro: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, specification for contender.py) of each trainer; the first is ours with its defaults."""
    spec = {**ours(name, given, tokens), "micro": micro}
    yield "isoflop", spec
    for more in given.also:
        yield f"isoflop {more}", {**spec, **ALSO[more]}
    if given.nanogpt:
        its = {"trainer": "nanogpt", "folder": str(given.nanogpt.resolve())}
        its |= {key: spec[key] for key in ("size", "tokens", "device", "compile")}
        for passes in dict.fromkeys((NANOGPT_PASS[name], micro)):
            yield f"nanogpt, passes of {passes}", {**its, "micro": passes}


def measure_size(name: str, given: argparse.Namespace, promised: float | None, reached: float) -> dict[str, Any]:
    size = CARD_SIZES[name]
    with tempfile.TemporaryDirectory() as scratch:
        tokens = random_tokens(Path(scratch), size.vocabulary)
        steps = given.steps or size.steps
        micro, refused = choose_pass(ours(name, given, tokens), PASSES[name], max(1, steps // 4), Path(scratch))
        print(f"{name}  passes of {micro} sequences; larger ones: {refused or 'none tried'}", flush=True)
        specs = dict(contenders(name, given, tokens, micro))
        done, missing = take_turns_alone(specs, steps, given.rounds, Path(scratch))
    if "isoflop" not in done:
        raise UserError(f"ours did not run at {name}: {last_line(missing['isoflop'])}")
    flops = flops_per_token(nanogpt_model(size), convention="palm")
    row: dict[str, Any] = {"size": name, "shape": str(size), "pass": micro, "palm_flops_per_token": flops}
    row["trainers"] = {who: one(size, turns, flops, promised, reached, done["isoflop"]) for who, turns in done.items()}
    row["missing"] = {who: last_line(why) for who, why in missing.items()}
    show(row)
    return row


def one(size: Size, turns: Turns, flops: float, promised: float | None, reached: float, first: Turns) -> dict[str, Any]:
    """The results of one trainer."""
    tokens = size.tokens / turns.median
    return {
        "tokens_per_second": round(tokens, 1),
        "mfu": None if promised is None else round(flops * tokens / promised, 4),
        "of_measured_peak": round(flops * tokens / reached, 8),
        "isoflop_is_times_as_fast": round(ratio(first, turns), 4),
        **turns.to_dict(),
    }


def show(row: dict[str, Any]) -> None:
    wanted = CARD_MFU.get(row["size"])
    for who, one in row["trainers"].items():
        mfu = "no data sheet" if one["mfu"] is None else f"MFU {one['mfu']:.1%}"
        target = f" (target {wanted:.0%})" if wanted and who == "isoflop" else ""
        print(
            f"{row['size']}  {who:24} {one['tokens_per_second']:>12,.0f} tok/s  {mfu}{target}  "
            f"{one['of_measured_peak']:.1%} of the best product  {one['peak_bytes'] / 2**30:.1f} GiB"
            + (f"  isoflop is {one['isoflop_is_times_as_fast']:.2f} times as fast" if who != "isoflop" else "")
            + (f" (target {CARD_SPEED})" if who.startswith("nanogpt") else ""),
            flush=True,
        )
    for who, why in row["missing"].items():
        print(f"{row['size']}  {who:24} did not run: {why}", flush=True)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run everything that was requested; the rest is None."""
    card = torch.cuda.get_device_name(given.device) if given.device != "cpu" else None
    promised = card_peak(card) if card else None
    peak = measure_peak(given.device, given.seconds)
    torch.cuda.empty_cache()  # this process holds no GPU memory but its context
    reached = max(peak.values())
    sheet = "no data sheet" if promised is None else f"{promised / 1e12:,.0f} TFLOP/s by the data sheet"
    print(f"{card or 'no card'}: {sheet}, {reached / 1e12:,.3g} in the best matrix product", flush=True)
    rows = [measure_size(name, given, promised, reached) for name in given.sizes]
    if not given.nanogpt:
        print("nanoGPT is left out: name its clone by --nanogpt FOLDER")
    found = None
    if given.text and given.nanogpt:
        found = race(given.text, given.nanogpt, given.budget, given.shares, given.text_mb, given.device)
        share = "not reached" if found["share"] is None else f"{found['share']:.2f} of its seconds"
        print(f"nanoGPT's held-out loss: {share} (target {CARD_RACE})", flush=True)
    else:
        print("the race is left out: it needs --nanogpt FOLDER and --text SOURCE")
    about = {"card": card, "promised_flops_per_second": promised, "measured_flops_per_second": reached}
    return {**about, "rounds": given.rounds, "rows": rows, "race": found}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--sizes", nargs="+", choices=list(CARD_SIZES), default=["124M", "1.5B"])
    parser.add_argument("--also", nargs="+", choices=list(ALSO), default=[], help="also ours with these options")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="steps per turn; 0: 10 at 124M, 2 at 1.5B")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the best matrix product")
    parser.add_argument("--text", metavar="SOURCE", help="run the race on this text, as race.py does")
    parser.add_argument("--budget", default="10m", help="of nanoGPT's steps in the race")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.125, 0.25, 0.5, 1.0], help="of that, for ours")
    parser.add_argument("--text-mb", type=float, default=64.0, help="megabytes of text in the race")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/gpu.json")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA card here; --device cpu --sizes tiny tries the bench without one")
    if given.json and given.device == "cpu":
        raise UserError("bench/results/gpu.json is a card's; leave --json out with --device cpu")
    return given


def main() -> None:
    try:
        given = arguments()
        result = measure(given)
    except UserError as error:
        print(f"bench/gpu.py: {error}", file=sys.stderr)
        sys.exit(2)
    if given.json:
        peers = {"nanogpt": version(given.nanogpt)} if given.nanogpt else {}
        record("gpu", result, peers, given.device)


if __name__ == "__main__":
    main()
