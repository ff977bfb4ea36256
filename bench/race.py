"""Seconds to the held-out bits per byte that another trainer reaches: its recipe for some minutes, then ours.

    python bench/race.py SOURCE --peer nanogpt FOLDER --budget 10m [--shares 0.25 0.5 1] [--text-mb 64]
                         [--device cpu] [--json]
    python bench/race.py SOURCE --peer nanochat FOLDER [--python PYTHON] --budget 150s 5m 10m [--seeds 0 1 2]
                         [--shares 0.5 1] [--recipe NAME=VALUE ...] [--tries 16] [--text-mb 64] [--json]

Both train on the same documents (the first --text-mb megabytes of the source), and both are judged on the same held-out
ones. Ours is `isoflop train` with its defaults, for shares of the peer's seconds, smallest first, until it is as good;
its seconds are those of training. What either spends before the first step is printed separately.

nanoGPT is run as its README says for a CPU, characters for tokens: train.py takes some steps first, to be timed, and is
then run with max_iters and lr_decay_iters set so that its schedule ends with the budget; its seconds are those of its
steps, without its own estimates of the loss. It is measured with the weights of its last checkpoint on all of the
held-out text, one window of its context after the other. With --device cuda both train there, nanoGPT with its README's
recipe for a GPU. `--nanogpt FOLDER` is the same as `--peer nanogpt FOLDER`.

nanochat is tuned for the budget first (peer_nanochat.py says how; --recipe names what an earlier call found, and tunes
nothing), in the environment of --python (README.md says what that needs). Both have the same number of threads, and
take turns: for each seed and budget nanochat's run, then ours. Both are judged in two kinds of windows of their
context: `begun` ones, each with the id that begins a document in front, as nanochat is trained, and `running` ones
through all documents, as ours is; the ends of documents count in the latter. Ours, in running windows, has to reach
nanochat's figure in begun ones, and in running ones: seconds of either are told.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import isoflop
from inside_nanochat import begun as windows_begun
from isoflop.budget import parse_budget
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.readers import read_documents
from isoflop.data.tally import Tally
from isoflop.errors import UserError
from isoflop.evaluate.likelihood import Window, read
from isoflop.files import write_text
from isoflop.runtime import make_runtime
from peer_nanochat import Nanochat, Recipe, interpreter
from peer_nanogpt import RECIPES, nanogpt
from record import ROOT, keep_row, record, version
from tables import at_most

HELD_OUT = 0.02  # of the text's bytes
SHARES = {"nanogpt": [0.125, 0.25, 0.5, 1.0], "nanochat": [0.5, 1.0]}  # of the peer's seconds, for ours
FIGURES = ("begun", "running")  # nanochat's, in the two kinds of windows
# Of the budget's seconds: a short try of nanochat, and one of the best FINALISTS afterwards
TRY_SHARE, FINAL_SHARE, FINALISTS = 0.08, 0.3, 3


@dataclass(frozen=True)
class Text:
    """The documents that both train on, and those that both are judged on."""

    train: list[str]
    heldout: list[str]


def read_text(source: str, most: float) -> Text:
    """The first `most` bytes of a source; of every fifty bytes about one is held out, by whole documents."""
    sides: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    for text in documents(source):
        size = len(text.encode())
        held = sizes[1] + size / 2 <= HELD_OUT * (sizes[0] + sizes[1] + size)
        sides[held].append(text)
        sizes[held] += size
        if sum(sizes) >= most:
            break
    if not all(sizes):
        raise UserError(f"{source} has too few documents to hold one out; name a larger text")
    return Text(*sides)


def documents(source: str) -> Iterator[str]:
    for one in parse_sources([source]):
        for file in find_files(one):
            for document in read_documents(file, "text", Tally()):
                yield document.decode()


def write_sides(text: Text, folder: Path) -> None:
    """train.jsonl and heldout.jsonl."""
    for name, side in (("train", text.train), ("heldout", text.heldout)):
        lines = (json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in side)
        write_text(folder / f"{name}.jsonl", "".join(lines))


def ours(seconds: float, scratch: Path, device: str, seed: int = 0) -> dict[str, Any]:
    """`isoflop train` for so many seconds, on what `write_sides` wrote into `scratch`; into `folder_of` these."""
    started = time.monotonic()
    out = folder_of(seconds, scratch, seed)
    words = [str(scratch / "train.jsonl"), "--heldout", str(scratch / "heldout.jsonl"), "--budget", f"{seconds:g}s"]
    words += ["--set", f"runtime.device={device}", *([f"seed={seed}"] if seed else [])]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # wheels may lie on it
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", "train", *words, "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "ISOFLOP_HOME": str(scratch / "home")},
    )
    if done.returncode:
        raise RuntimeError(f"isoflop train failed:\n{done.stderr[-2000:]}")
    whole = time.monotonic() - started
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    model = json.loads((out / "config.json").read_text(encoding="utf-8"))["model"]
    return {
        "seconds": round(result["seconds"], 2),
        "before_seconds": round(result["phases"].get("prepare", 0.0) + result["phases"].get("calibrate", 0.0), 2),
        "whole_seconds": round(whole, 2),
        "shape": f"{model['layers']} x {model['d_model']}, context {model['context']}, {model['vocab_size']} ids",
        "steps": result["step"],
        "bits_per_byte": result["heldout"]["bits_per_byte"],
    }


def folder_of(seconds: float, scratch: Path, seed: int) -> Path:
    return scratch / f"ours-{seconds:g}-{seed}"


def bits_begun(run: Path, heldout: Sequence[str]) -> float:
    """Bits per byte of a run of ours in windows that begin with the id in front of a document, ends not counted."""
    model, tokenizer = isoflop.load(run)
    ids = tokenizer.encode_batch(heldout)
    windows = [
        Window(np.array(window, dtype=np.int64), len(window) - 1)
        for window in windows_begun(ids, tokenizer.start, model.config.context)
    ]
    nats = -sum(found for found, _ in read(model, windows, make_runtime("cpu", "float32")))
    return nats / math.log(2) / sum(len(text.encode()) for text in heldout)


def seconds_to(target: float, runs: list[dict[str, Any]]) -> float | None:
    """When ours reaches `target`: between the last run that did not and the first that did, on a line in the logarithm
    of the seconds; the seconds of the first itself if there is none before it; None if none did."""
    before = None
    for run in runs:
        if run["bits_per_byte"] <= target:
            if before is None:
                return float(run["seconds"])
            along = (before["bits_per_byte"] - target) / (before["bits_per_byte"] - run["bits_per_byte"])
            return float(before["seconds"] * (run["seconds"] / before["seconds"]) ** along)
        before = run
    return None


def seconds_of(budget: str) -> float:
    """Raises:
    UserError: if it is not a time.
    """
    amount = parse_budget(budget)
    if amount.kind != "seconds":
        raise UserError(f"--budget {budget} is not a time; write 60s or 10m")
    return amount.amount


def split(source: str, text_mb: float) -> tuple[Text, dict[str, int]]:
    """The text of a race, and the bytes of both sides."""
    text = read_text(source, text_mb * 1e6)
    size = {name: sum(len(one.encode()) for one in side) for name, side in vars(text).items()}
    print(f"{size['train'] / 1e6:.1f} MB to train on, {size['heldout'] / 1e6:.2f} MB held out", flush=True)
    return text, size


def race(
    source: str, folder: Path, budget: str, shares: Sequence[float], text_mb: float, device: str = "cpu"
) -> dict[str, Any]:
    """nanoGPT and ours, one after the other.

    Args:
        folder: nanoGPT's.
        budget: of nanoGPT's steps, a time.
        shares: of that, for ours.

    Returns:
        `seconds` until ours reached nanoGPT's bits per byte, as a `share` of nanoGPT's, None if it did not; the runs.

    Raises:
        UserError: if the budget is not a time or the text is too short.
    """
    amount = seconds_of(budget)
    text, size = split(source, text_mb)
    with tempfile.TemporaryDirectory() as scratch:
        write_sides(text, Path(scratch))
        theirs = nanogpt(folder, text, amount, Path(scratch), device)
        print(f"nanoGPT: {theirs['bits_per_byte']:.4f} bits per byte in {theirs['seconds']:.1f} s", flush=True)
        runs = []
        for share in sorted(shares):
            runs.append(ours(round(share * amount, 1), Path(scratch), device))
            say(runs[-1])
            if runs[-1]["bits_per_byte"] <= theirs["bits_per_byte"]:
                break
    reached = seconds_to(theirs["bits_per_byte"], runs)
    share = None if reached is None else reached / theirs["seconds"]
    print(
        "isoflop did not reach it" if share is None else f"isoflop reaches it in {reached:.1f} s, {share:.2f} of that"
    )
    return {"bytes": size, "nanogpt": theirs, "isoflop": runs, "seconds": reached, "share": share}


def say(run: dict[str, Any]) -> None:
    print(
        f"isoflop: {run['bits_per_byte']:.4f} in {run['seconds']:.1f} s ({run['shape']}; "
        f"{run['before_seconds']:.1f} s before the first step)",
        flush=True,
    )


def race_nanochat(
    given: argparse.Namespace, keep: Callable[[dict[str, Any]], object] = lambda row: None
) -> list[dict[str, Any]]:
    """nanochat and ours in turns.

    Args:
        given: of `main`.
        keep: told each row whenever it has one more seed.

    Returns:
        A row per budget: the text's name, its bytes, nanochat's recipe and the tries that found it, and for each seed
        the runs of both and the seconds until ours reached nanochat's figures, None where it did not.

    Raises:
        UserError: if a budget is not a time, the text is too short, or nanochat cannot be run.
    """
    budgets = sorted(seconds_of(budget) for budget in given.budget)
    recipe = Recipe.parse(given.recipe)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        peer = Nanochat(given.peer[1], interpreter(given.python), scratch, scratch / "nanochat")
        text, size = split(given.source, given.text_mb)
        write_sides(text, scratch)
        rows = []
        for budget in budgets:
            tries: list[dict[str, Any]] = []
            if not given.recipe:  # what was best for fewer seconds is where to start
                recipe, tries = peer.tuned(recipe, budget, TRY_SHARE, given.tries, FINAL_SHARE, FINALISTS)
            about = {"text": Path(given.source).name, "budget": budget, "bytes": size}
            rows.append({**about, "recipe": dataclasses.asdict(recipe), "tries": tries, "seeds": []})
        for seed in given.seeds:
            runs: list[dict[str, Any]] = []  # of ours, for all budgets
            for row in rows:
                theirs = peer.run(Recipe(**row["recipe"]), row["budget"], seed, anew=True)
                print(
                    f"nanochat: {theirs['begun']:.4f} in begun windows, {theirs['running']:.4f} in running ones, "
                    f"in {theirs['seconds']:.1f} s",
                    flush=True,
                )
                best = min(theirs[figure] for figure in FIGURES)
                for seconds in sorted(round(share * row["budget"], 1) for share in given.shares):
                    if any(run["bits_per_byte"] <= best for run in runs):
                        break
                    if seconds not in [run["budget"] for run in runs]:
                        run = ours(seconds, scratch, "cpu", seed)
                        begun = bits_begun(folder_of(seconds, scratch, seed), text.heldout)
                        runs.append({"budget": seconds, **run, "begun": begun})
                        say(run)
                runs.sort(key=lambda run: run["budget"])
                row["seeds"].append({"seed": seed, "nanochat": theirs, "isoflop": list(runs)})
                row["seeds"][-1]["seconds"] = {figure: seconds_to(theirs[figure], runs) for figure in FIGURES}
                keep(row)
    for row in rows:
        print(f"{row['budget']:g} s: {summary(row)}", flush=True)
    return rows


def shares_reached(row: dict[str, Any], figure: str) -> list[float] | None:
    """Seconds of ours to one of nanochat's figures over nanochat's, for each seed; None if one did not reach it."""
    reached = [seed["seconds"][figure] for seed in row["seeds"]]
    if None in reached:
        return None
    return [ours / seed["nanochat"]["seconds"] for ours, seed in zip(reached, row["seeds"], strict=True)]


def summary(row: dict[str, Any]) -> str:
    said = []
    for figure in FIGURES:
        shares = shares_reached(row, figure)
        bound = at_most(row, figure)  # where our shortest run was as good already
        told = "not by every seed" if shares is None else f"in {bound}{statistics.median(shares):.2f} of its seconds"
        said.append(f"its figure in {figure} windows reached {told}")
    return "; ".join(said)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--peer", nargs=2, metavar=("NAME", "FOLDER"), help="nanogpt or nanochat, and a clone of it")
    peer.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a clone of karpathy/nanoGPT")
    parser.add_argument("--budget", nargs="+", default=["10m"], help="of the peer's steps; several for nanochat")
    parser.add_argument("--shares", nargs="+", type=float, help="of that, for ours")
    parser.add_argument("--text-mb", type=float, default=64.0, help="megabytes of text")
    parser.add_argument("--device", choices=list(RECIPES), default="cpu")
    parser.add_argument("--python", default="", help="the interpreter of nanochat's environment; without it ours")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of both, with nanochat")
    parser.add_argument("--recipe", nargs="+", default=[], metavar="NAME=VALUE", help="nanochat's, instead of tuning")
    parser.add_argument("--tries", type=int, default=16, help="short tries of nanochat at most, for each budget")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results")
    given = parser.parse_args(words)
    name, folder = given.peer or ("nanogpt", given.nanogpt)
    if name not in SHARES:
        parser.error(f"--peer {name} is none of {', '.join(SHARES)}")
    given.peer = (name, Path(folder))
    given.shares = given.shares or SHARES[name]
    if name == "nanogpt" and (len(given.budget) > 1 or given.seeds != [0] or given.recipe or given.python):
        parser.error("several budgets, --seeds, --recipe and --python are for --peer nanochat")
    if given.device != "cpu" and name == "nanochat":
        parser.error("--peer nanochat is for CPUs")
    if given.device != "cpu" and given.json:
        parser.error("bench/results/race.json is a CPU's; gpu.py has a record of its own")
    return given


def main() -> None:
    given = arguments()
    name, folder = given.peer
    peers = {name: version(folder)}
    try:
        if name == "nanogpt":
            result = race(given.source, folder, given.budget[0], given.shares, given.text_mb, given.device)
            if given.json:
                record("race", result, peers)
            return

        def keep(row: dict[str, Any]) -> None:
            if given.json:
                keep_row("race-nanochat", row, ("text", "budget"), peers)

        race_nanochat(given, keep)
    except UserError as error:
        print(f"bench/race.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
