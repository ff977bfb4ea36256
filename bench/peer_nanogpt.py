"""nanoGPT in a race (race.py): its train.py, untouched, as its README says, and the loss of its last checkpoint."""

import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from step import load_nanogpt

if TYPE_CHECKING:
    from race import Text

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


def nanogpt(folder: Path, text: "Text", seconds: float, scratch: Path, device: str) -> dict[str, Any]:
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
