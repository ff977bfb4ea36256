"""nanochat in a race (race.py --peer nanochat FOLDER): its scripts, untouched, in an environment of its own.

The shards, the tokenizer (its tok_train) and the documents' form that its loader wants are made from the race's text.
base_train first takes some steps to be timed; then its number of iterations is set so that its schedule ends with the
seconds it has. These are the seconds of its steps as it prints them, the first ten (its compiler works in them) counted
as the mean of the others.

Its recipe is tuned for the budget: one thing at a time, up and down a scale, as long as the loss falls, each try with
a share of the budget's seconds and a schedule of its own; the best few then run for a larger share. The held-out text
itself decides, which favours it a little.
"""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inside_nanochat import SHARDS, TAG
from isoflop.errors import UserError
from isoflop.processors import cores

INSIDE = Path(__file__).with_name("inside_nanochat.py")
PRINTED = re.compile(r"step (\d+)/\d+ .*\| dt: ([\d.]+)ms")
HEAD = 64  # ids wide, as in its script for a CPU
WARM_UP = 10  # steps that its own clock leaves out too
TIMED_STEPS, TIMED_SECONDS = 3, 5.0  # at least so many steps, and seconds of steps, are timed
MOST_AT_ONCE = 8192  # ids in one forward and backward pass
RATES = {"embedding-lr": 0.3, "unembedding-lr": 0.008, "matrix-lr": 0.02}  # its own


@dataclass(frozen=True)
class Recipe:
    """What is tuned, in its words for a command line. What is not here stays as base_train has it.

    Attributes:
        width: of the residual stream, a multiple of 64.
        batch: ids of a step.
        rates: factor on its own learning rates of embeddings, head and matrices.
        dtype: float32 or bfloat16.

    Raises:
        UserError: for sizes that do not fit each other.
    """

    depth: int = 2
    width: int = 128
    vocabulary: int = 4096
    context: int = 256
    batch: int = 4096
    rates: float = 3.0
    dtype: str = "bfloat16"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.width < HEAD or self.width % HEAD or not 1 <= self.depth < HEAD:
            raise UserError(f"nanochat cannot be {self.depth} x {self.width}; the width is a multiple of {HEAD}")
        if self.context < 2 or self.batch < self.context or self.batch % self.context:
            raise UserError(f"a batch of {self.batch} ids is no multiple of the context, {self.context}")

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Recipe":
        """A recipe from words like depth=2 rates=3; what is left out is as in `Recipe()`.

        Raises:
            UserError: for an unknown name or a value of another type.
        """
        types: dict[str, Callable[[str], Any]] = {
            field.name: {"true": True, "false": False}.__getitem__ if field.name == "compile" else type(field.default)
            for field in dataclasses.fields(cls)
        }
        values = {}
        for word in words:
            name, _, value = word.partition("=")
            try:
                values[name] = types[name](value)
            except (KeyError, ValueError):
                raise UserError(f"--recipe {word} is none of {' '.join(f'{n}=...' for n in types)}") from None
        return cls(**values)

    def words(self) -> list[str]:
        """What `parse` reads."""
        return [f"{name}={str(value).lower()}" for name, value in dataclasses.asdict(self).items()]

    def __str__(self) -> str:
        return (
            f"{self.depth} x {self.width}, context {self.context}, {self.vocabulary:,} ids, batches of {self.batch:,}, "
            f"rates times {self.rates:.3g}, {self.dtype}{', compiled' if self.compile else ''}"
        )

    def command(self, steps: int) -> list[str]:
        """Words for its base_train. It rounds depth * aspect ratio up to a multiple of the head's width."""
        rows = max(1, min(self.batch, MOST_AT_ONCE) // self.context)
        while self.batch % (rows * self.context):
            rows -= 1
        return [
            "--device-type=cpu",
            f"--depth={self.depth}",
            f"--aspect-ratio={self.width // self.depth}",
            f"--head-dim={HEAD}",
            f"--max-seq-len={self.context}",
            "--window-pattern=L",
            f"--num-iterations={steps}",
            f"--device-batch-size={rows}",
            f"--total-batch-size={self.batch}",
            *(f"--{name}={rate * self.rates:g}" for name, rate in RATES.items()),
            *("--eval-every=-1", "--core-metric-every=-1", "--sample-every=-1", f"--model-tag={TAG}"),
        ]


# What is tuned, in this order, and its values; the search goes up and down from where it stands.
SCALES: dict[str, tuple[Any, ...]] = {
    "compile": (False, True),
    "dtype": ("float32", "bfloat16"),
    "rates": (0.33, 1.0, 3.0, 9.0),
    "batch": (2048, 4096, 8192, 16384),
    "width": (64, 128, 192, 256, 384),
    "depth": (2, 3, 4, 6),
    "vocabulary": (1024, 2048, 4096, 8192),
    "context": (128, 256, 512),
}


def neighbour(recipe: Recipe, name: str, by: int) -> Recipe | None:
    """The recipe with another value of one thing: the one `by` places further on its scale; None if there is none."""
    scale, now = SCALES[name], getattr(recipe, name)
    place = (scale.index(now) if now in scale else min(range(len(scale)), key=lambda i: abs(scale[i] - now))) + by
    if not 0 <= place < len(scale):
        return None
    try:
        return replace(recipe, **{name: scale[place]})
    except UserError:  # a batch smaller than the context
        return None


def tune(start: Recipe, loss_of: Callable[[Recipe], float], tries: int) -> dict[Recipe, float]:
    """Search recipes one thing at a time, again until nothing is better or there were `tries` tries.

    Args:
        loss_of: of a recipe; infinite for one that does not run.

    Returns:
        The losses of what was tried, in that order.
    """
    found: dict[Recipe, float] = {}

    def attempt(recipe: Recipe | None) -> float:
        if recipe is None or (recipe not in found and len(found) >= tries):
            return math.inf
        if recipe not in found:
            found[recipe] = loss_of(recipe)
        return found[recipe]

    best, before = start, None
    attempt(best)
    while best != before and len(found) < tries:
        before = best
        for name in SCALES:
            for by in (1, -1):
                moved = False
                while (other := neighbour(best, name, by)) is not None and attempt(other) < attempt(best):
                    best, moved = other, True
                if moved:
                    break
    return found


def finalists(found: dict[Recipe, float], count: int) -> list[Recipe]:
    """The best `count`, and the best one's larger neighbours in width and depth: more seconds favour a larger model."""
    ordered = [recipe for recipe in sorted(found, key=lambda recipe: found[recipe]) if math.isfinite(found[recipe])]
    larger = [neighbour(recipe, name, 1) for recipe in ordered[:1] for name in ("width", "depth")]
    return list(dict.fromkeys([*ordered[:count], *filter(None, larger)]))


class Nanochat:
    """nanochat on one text.

    Args:
        folder: a clone of it.
        python: the interpreter of an environment that has what it needs.
        texts: the folder with train.jsonl and heldout.jsonl.
        scratch: a folder for all that it writes.

    Raises:
        UserError: if the folder is another, or the environment lacks a package.
    """

    def __init__(self, folder: Path, python: str, texts: Path, scratch: Path) -> None:
        self.folder, self.python, self.texts, self.scratch = folder.resolve(), python, texts, scratch
        if not (self.folder / "scripts" / "base_train.py").is_file():
            raise UserError(f"--peer nanochat {folder} has no scripts/base_train.py; name a clone of karpathy/nanochat")
        scratch.mkdir(parents=True, exist_ok=True)
        self.per_step: dict[Recipe, float] = {}
        try:
            lacking = json.loads(self.answer([str(INSIDE), "lacking"], scratch))
        except OSError:
            raise UserError(f"--python {python} cannot be started; name the interpreter of an environment") from None
        if lacking:
            raise UserError(
                f"nanochat needs {' '.join(lacking)}; {python} -m pip install {' '.join(lacking)}, or name the "
                "interpreter of another environment by --python"
            )

    def environment(self, base: Path, recipe: Recipe | None = None) -> dict[str, str]:
        """Its folder to import from, its base folder, our number of threads, and what a recipe sets by variables."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",  # its folder stays as it is
            "NANOCHAT_BASE_DIR": str(base),
            "NANOCHAT_DTYPE": recipe.dtype if recipe else "float32",
            "OMP_NUM_THREADS": str(cores()),
            "TORCHINDUCTOR_CACHE_DIR": str(self.scratch / "compiled"),
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_MODE": "disabled",
        }

    def answer(self, words: Sequence[str], base: Path) -> str:
        """Run its Python; the last line that it prints."""
        done = subprocess.run(
            [self.python, *words], cwd=self.scratch, env=self.environment(base), capture_output=True, encoding="utf-8"
        )
        if done.returncode:
            raise RuntimeError(f"nanochat: {' '.join(words[:3])} failed:\n{done.stderr[-2000:]}")
        return (done.stdout.splitlines() or [""])[-1]

    def tokenizer(self, vocabulary: int) -> Path:
        """The folder of a tokenizer that its tok_train made from all of the training side."""
        base = self.scratch / f"vocabulary-{vocabulary}"
        if not (base / "tokenizer").is_dir():
            self.answer([str(INSIDE), "documents", str(self.texts), str(base)], base)
            whole = ("--doc-cap=1000000000", f"--vocab-size={vocabulary}")
            self.answer(["-m", "scripts.tok_train", *whole], base)
        return base / "tokenizer"

    def data(self, recipe: Recipe, seed: int) -> Path:
        """Its base folder: the tokenizer, and shards of pieces that fill its rows."""
        base = self.scratch / f"data-{recipe.vocabulary}-{recipe.context}-{seed}"
        if not (base / SHARDS).is_dir():
            tokenizer = self.tokenizer(recipe.vocabulary)
            shutil.rmtree(base, ignore_errors=True)  # what a failure left
            base.mkdir()
            (base / "tokenizer").symlink_to(tokenizer)
            words = ["pieces", str(self.texts), str(base), str(recipe.context), str(seed)]
            self.answer([str(INSIDE), *words], base)
        return base

    def seconds_per_step(self, recipe: Recipe, anew: bool = False) -> float:
        """Measured once for each shape, or `anew`: the machine's speed drifts. Rates make no difference to it."""
        shape = replace(recipe, rates=1.0)
        if anew or shape not in self.per_step:

            def enough(seconds: Sequence[float]) -> bool:
                timed = seconds[WARM_UP:]
                return len(timed) >= TIMED_STEPS and sum(timed) >= TIMED_SECONDS

            took = self.steps(recipe, 10**6, 0, enough)
            self.per_step[shape] = statistics.mean(took[WARM_UP:])  # its loader works in some steps only
        return self.per_step[shape]

    def steps(
        self, recipe: Recipe, steps: int, seed: int, enough: Callable[[Sequence[float]], bool] | None = None
    ) -> list[float]:
        """Run base_train; the seconds of each of its steps. It is stopped on the way once these are `enough`."""
        base, took = self.data(recipe, seed), []
        log = self.scratch / "train.log"
        command = [self.python, str(INSIDE), "train", str(seed), str(recipe.compile).lower(), *recipe.command(steps)]
        environment = self.environment(base, recipe)
        with (
            log.open("wb") as errors,
            subprocess.Popen(
                command,
                cwd=self.scratch,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                start_new_session=True,
            ) as process,
        ):
            assert process.stdout
            stopped = False
            try:
                for line in process.stdout:
                    if printed := PRINTED.match(line):
                        took.append(float(printed[2]) / 1e3)
                        if enough and enough(took):
                            stopped = True
                            break
            finally:
                if process.poll() is None and (stopped or len(took) < steps):
                    os.killpg(process.pid, signal.SIGKILL)  # with the processes that its compiler started
        if not stopped and (process.returncode or len(took) < steps):
            raise RuntimeError(f"nanochat's base_train failed:\n{log.read_text(errors='replace')[-2000:]}")
        return took

    def run(self, recipe: Recipe, seconds: float, seed: int, anew: bool = False) -> dict[str, Any]:
        """Train for about so many seconds of steps, and judge the last checkpoint.

        Returns:
            `seconds` of its steps, `whole_seconds` of the process, `steps`, `tokens`, and the held-out bits per byte in
            windows that are `begun` with BOS and in `running` ones.
        """
        per_step = self.seconds_per_step(recipe, anew)
        steps = max(1, round(seconds / per_step))
        base, started = self.data(recipe, seed), time.monotonic()
        took = self.steps(recipe, steps, seed)
        whole = time.monotonic() - started
        usual = statistics.mean(took[WARM_UP:]) if steps > WARM_UP else per_step
        words = ["judge", str(self.texts), str(base), str(steps), str(recipe.context)]
        found = json.loads(self.answer([str(INSIDE), *words], base))
        shutil.rmtree(base / "base_checkpoints")
        return {
            "seconds": round(sum(took[WARM_UP:]) + usual * min(WARM_UP, steps), 2),
            "whole_seconds": round(whole, 2),
            "steps": steps,
            "tokens": steps * recipe.batch,
            "begun": found["begun"],
            "running": found["running"],
        }

    def tuned(
        self, start: Recipe, budget: float, share: float, tries: int, final_share: float, count: int
    ) -> tuple[Recipe, list[dict[str, Any]]]:
        """The best recipe for a budget of seconds, and all tries with their seconds and losses.

        Args:
            share, tries: of the budget for each short try, and how many of these at most.
            final_share, count: of the budget for each of the best `count` (and larger neighbours) afterwards.

        Raises:
            RuntimeError: if none ran.
        """
        tried: list[dict[str, Any]] = []

        def loss_of(recipe: Recipe, share: float) -> float:
            try:
                run = self.run(recipe, share * budget, 0)
            except RuntimeError as error:
                print(f"nanochat: {recipe}: did not run ({str(error).splitlines()[-1]})", flush=True)
                return math.inf
            loss = min(run["begun"], run["running"])
            loss = loss if math.isfinite(loss) else math.inf
            tried.append({"recipe": dataclasses.asdict(recipe), "share": share, "seconds": run["seconds"]})
            tried[-1]["bits_per_byte"] = round(loss, 4) if math.isfinite(loss) else None
            print(f"nanochat: {loss:.4f} in {run['seconds']:.1f} s: {recipe}", flush=True)
            return loss

        found = tune(start, lambda recipe: loss_of(recipe, share), tries)
        last = finalists(found, count)
        if not last:
            raise RuntimeError("no recipe of nanochat ran")
        losses = {recipe: loss_of(recipe, final_share) for recipe in last} if len(last) > 1 else found
        best = min(last, key=lambda recipe: losses[recipe])
        print(f"nanochat for {budget:g} s: --recipe {' '.join(best.words())}", flush=True)
        return best, tried


def interpreter(given: str) -> str:
    """A path to a Python that stays right in another folder; "" is ours."""
    found = shutil.which(given) if given else sys.executable
    return str(Path(found).absolute()) if found else given
