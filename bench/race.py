"""Seconds to the held-out bits per byte that nanoGPT's CPU recipe reaches: its recipe for some minutes, then ours.

    python bench/race.py books.jsonl.xz --nanogpt FOLDER --budget 10m [--shares 0.25 0.5 1] [--text-mb 64]
                         [--device cpu] [--json]

Both train on the same documents (the first --text-mb megabytes of the source), and both are judged on the same held-out
ones. nanoGPT is run as its README says for a CPU, characters for tokens: train.py takes some steps first, to be timed,
and is then run with max_iters and lr_decay_iters set so that its schedule ends with the budget; its seconds are those
of its steps, without its own estimates of the loss. It is measured with the weights of its last checkpoint on all of
the held-out text, one window of its context after the other. Ours is `isoflop train` with its defaults, for shares of
the same seconds, smallest first, until it is as good; its seconds are those of training. What either spends before the
first step is told beside them. With --device cuda both train there, nanoGPT with its README's recipe for a GPU.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.budget import parse_budget
from isoflop.data.corpus import find_files, parse_sources
from isoflop.data.readers import read_documents
from isoflop.data.tally import Tally
from isoflop.errors import UserError
from isoflop.files import write_text
from record import ROOT, record, version
from step import load_nanogpt

HELD_OUT = 0.02  # of the text's bytes
TRIED = 60  # steps of nanoGPT that are timed before its schedule is set
EVERY = 250  # steps between its checkpoints, as in its recipe
# Its README's lines for a computer without a GPU and for one with it, the length left out (what is not here is in
# config/train_shakespeare_char.py). No dropout for either: there is more text than Shakespeare's.
RECIPES = {
    "cpu": (
        *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64"),
        *("--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0"),
    ),
    "cuda": ("--device=cuda", "--eval_iters=20", "--log_interval=1", "--dropout=0.0"),
}
PRINTED = re.compile(r"^iter (\d+): loss [\d.naif]+, time ([\d.]+)ms", re.MULTILINE)


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


def nanogpt(folder: Path, text: Text, seconds: float, scratch: Path, device: str) -> dict[str, Any]:
    """Run its recipe so that it ends after about `seconds` of steps, and measure what it reached."""
    started = time.monotonic()
    work = scratch / "nanogpt"
    data = work / "data" / "shakespeare_char"  # where the recipe looks
    data.mkdir(parents=True)
    for path in folder.resolve().iterdir():
        if path.name not in ("data", ".git"):
            (work / path.name).symlink_to(path)
    train, held = ("\n".join(side) for side in (text.train, text.heldout))
    characters = sorted(set(train) | set(held))  # as its prepare.py has it, in code points for speed
    table = np.zeros(ord(characters[-1]) + 1, np.uint16)
    table[[ord(c) for c in characters]] = np.arange(len(characters))
    ids = {}
    for name, side in (("train", train), ("val", held)):
        ids[name] = table[np.frombuffer(side.encode("utf-32-le"), np.uint32)]
        ids[name].tofile(data / f"{name}.bin")
    (data / "meta.pkl").write_bytes(b"(dVvocab_size\nI%d\ns." % len(characters))
    prepared = time.monotonic() - started

    tried = run_nanogpt(work, device, TRIED, "--eval_interval=1000000")
    per_step = statistics.median(ms for _, ms in tried[5:]) / 1e3
    steps = max(1, round(seconds / per_step / EVERY)) * EVERY
    print(f"nanoGPT: {1e3 * per_step:.1f} ms a step, so {steps} steps", flush=True)
    printed = run_nanogpt(work, device, steps)
    # a step after an estimate of the loss has the estimate in its time
    own = [ms if number % EVERY else 1e3 * per_step for number, ms in printed]
    nats, counted = judge(folder, work / "out-shakespeare-char" / "ckpt.pt", ids["val"], device)
    return {
        "seconds": round(sum(own) / 1e3, 2),
        "before_seconds": round(prepared, 2),
        "steps": steps,
        "vocabulary": len(characters),
        "bits_per_byte": nats / math.log(2) / (len(held.encode()) * counted / len(ids["val"])),
    }


def run_nanogpt(work: Path, device: str, steps: int, *more: str) -> list[tuple[int, float]]:
    """Run train.py; (number, milliseconds) of each step that it printed."""
    length = [f"--max_iters={steps}", f"--lr_decay_iters={steps}"]
    done = subprocess.run(
        [sys.executable, "train.py", "config/train_shakespeare_char.py", *RECIPES[device], *length, *more],
        cwd=work,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"nanoGPT's train.py failed:\n{done.stderr[-2000:]}")
    return [(int(number), float(ms)) for number, ms in PRINTED.findall(done.stdout)]


@torch.no_grad()
def judge(folder: Path, checkpoint: Path, ids: np.ndarray, device: str) -> tuple[float, int]:
    """Summed nats of its last checkpoint on whole windows of the held-out ids, and how many ids that was."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module = load_nanogpt(folder)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    # a model that was compiled is saved with the compiler's prefix on its names
    model.load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in saved["model"].items()})
    model.to(device).eval()
    context = saved["model_args"]["block_size"]
    windows = (len(ids) - 1) // context
    inputs = torch.from_numpy(ids[: windows * context].astype(np.int64)).view(windows, context)
    targets = torch.from_numpy(ids[1 : windows * context + 1].astype(np.int64)).view(windows, context)
    nats = 0.0
    for x, y in zip(inputs.split(256), targets.split(256), strict=True):
        nats += float(model(x.to(device), y.to(device))[1]) * y.numel()
    return nats, windows * context


def ours(text: Text, seconds: float, scratch: Path, device: str) -> dict[str, Any]:
    """`isoflop train` for so many seconds."""
    started = time.monotonic()
    for name, side in (("train", text.train), ("heldout", text.heldout)):
        path = scratch / f"{name}.jsonl"
        if not path.exists():
            write_text(path, "".join(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in side))
    out = scratch / f"ours-{seconds:g}"
    words = [str(scratch / "train.jsonl"), "--heldout", str(scratch / "heldout.jsonl"), "--budget", f"{seconds:g}s"]
    words += ["--set", f"runtime.device={device}"]
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


def race(
    source: str, folder: Path, budget: str, shares: Sequence[float], text_mb: float, device: str = "cpu"
) -> dict[str, Any]:
    """Both, one after the other.

    Args:
        folder: nanoGPT's.
        budget: of nanoGPT's steps, a time.
        shares: of that, for ours.

    Returns:
        `seconds` until ours reached nanoGPT's bits per byte, as a `share` of nanoGPT's, None if it did not; the runs.

    Raises:
        UserError: if the budget is no time or the text is too short.
    """
    amount = parse_budget(budget)
    if amount.kind != "seconds":
        raise UserError(f"--budget {budget} is not a time; write 60s or 10m")
    text = read_text(source, text_mb * 1e6)
    size = {name: sum(len(one.encode()) for one in side) for name, side in vars(text).items()}
    print(f"{size['train'] / 1e6:.1f} MB to train on, {size['heldout'] / 1e6:.2f} MB held out", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = nanogpt(folder, text, amount.amount, Path(scratch), device)
        print(f"nanoGPT: {theirs['bits_per_byte']:.4f} bits per byte in {theirs['seconds']:.1f} s", flush=True)
        runs = []
        for share in sorted(shares):
            runs.append(ours(text, round(share * amount.amount, 1), Path(scratch), device))
            run = runs[-1]
            print(
                f"isoflop: {run['bits_per_byte']:.4f} in {run['seconds']:.1f} s ({run['shape']}; "
                f"{run['before_seconds']:.1f} s before the first step)",
                flush=True,
            )
            if run["bits_per_byte"] <= theirs["bits_per_byte"]:
                break
    reached = seconds_to(theirs["bits_per_byte"], runs)
    share = None if reached is None else reached / theirs["seconds"]
    print(
        "isoflop did not reach it" if share is None else f"isoflop reaches it in {reached:.1f} s, {share:.2f} of that"
    )
    return {"bytes": size, "nanogpt": theirs, "isoflop": runs, "seconds": reached, "share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--budget", default="10m", help="of nanoGPT's steps")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.125, 0.25, 0.5, 1.0], help="of that, for ours")
    parser.add_argument("--text-mb", type=float, default=64.0, help="megabytes of text")
    parser.add_argument("--device", choices=list(RECIPES), default="cpu")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/race.json")
    given = parser.parse_args()
    if given.json and given.device != "cpu":
        parser.error("bench/results/race.json is a CPU's; gpu.py has a record of its own")
    result = race(given.source, given.nanogpt, given.budget, given.shares, given.text_mb, given.device)
    if given.json:
        record("race", result, {"nanogpt": version(given.nanogpt)})


if __name__ == "__main__":
    main()
