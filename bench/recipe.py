"""The worth of each part of the default recipe: one change at a time, at equal seconds, with several seeds.

    python bench/recipe.py SOURCE ... --results FILE.jsonl [--set FIELD=VALUE ...] [--arms NAME ...] [--seeds 0 1 2]
                           [--tokens 3e6] [--workers 2] [--equal seconds|tokens] [--show] [--json [--name NAME]]

The default, a plan's recipe and rates for its width, is trained for `--tokens` tokens. An arm is trained for as many
tokens as it reads in the same seconds: its steps and the default's are timed in turns, in processor seconds, and the
ratio decides, so that a drifting machine speed or other programs do not. Changes of rates alone cost no time and are
not timed; with `--equal tokens` nothing is timed. Every run completes its own decay.

The measure is held-out bits per byte, which is comparable between vocabularies. The difference from the default is
taken per seed: with equal batches, a seed gives both the same data in the same order. Its 95 % interval is Student's,
with one variance for all arms, estimated from the scatter of each arm's differences around their mean: two seeds alone
say little about their variance, many arms together do (isoflop/lab/stats.py). One arm in twenty lies outside such an
interval by chance, so that an arm that wins has to win again at another size with other seeds.

Results are appended to FILE, one line per run. Runs in it are not repeated, and `--show` runs nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import reduce
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from isoflop import checkpoint
from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.data.prepare import prepare
from isoflop.lab.stats import pooled
from isoflop.plan.asked import Asked
from isoflop.plan.settings import with_rates, with_recipe
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer import train as train_steps
from isoflop.trainer.task import make_task
from record import record

DEFAULT = "default"
PAIRS_OF_TURNS = 3  # timings of an arm in turns with the default; the median counts
SECONDS = 3.0  # seconds of steps per side of a timing

# name -> assignments. FIELD*=FACTOR multiplies the default's value. One change each; two fields that belong together (a
# batch and its rates) have an arm together and arms of their own.
ARMS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    # architecture
    "norm layer": ("model.norm=layer",),
    "norm rms with gain": ("model.norm.gain=true",),
    "no QK norm": ("model.attention.qk_norm=false",),
    "learned positions": ("model.position=learned",),
    "alibi": ("model.position=alibi",),
    "gelu": ("model.feed_forward.activation=gelu",),
    "swiglu": ("model.feed_forward=swiglu",),
    "wiring parallel": ("model.wiring=parallel",),
    "wiring sandwich": ("model.wiring=sandwich",),
    "embedding norm": ("model.embedding_norm=true",),
    "embedding shortcut": ("model.embedding_shortcut=true",),
    "no value embeddings": ("model.value_embedding=0",),
    "value embeddings every second layer": ("model.value_embedding=2",),
    "value embeddings every second layer, no gate": ("model.value_embedding=2", "model.value_gate=false"),
    "logit cap 15": ("model.logit_cap=15",),
    "logit cap 30": ("model.logit_cap=30",),
    "tied head": ("model.tied_head=true", "optim.head_lr=0"),
    "init gpt2": ("model.init=gpt2",),
    "twice the heads": ("model.heads*=2",),
    "feed-forward 3x": ("model.feed_forward.ratio=3",),
    "feed-forward 6x": ("model.feed_forward.ratio=6",),
    "context half": ("model.context*=0.5", "batch.sequences*=2"),
    "context double": ("model.context*=2", "batch.sequences*=0.5"),
    "vocabulary half": ("data.vocab_size*=0.5", "model.vocab_size*=0.5"),
    "vocabulary double": ("data.vocab_size*=2", "model.vocab_size*=2"),
    # optimiser
    "adamw, lr 3e-3": ("optim.name=adamw", "optim.lr=3e-3", "optim.head_lr=0"),
    "adamw, lr 6e-3": ("optim.name=adamw", "optim.lr=6e-3", "optim.head_lr=0"),
    "adamw, lr 1.2e-2": ("optim.name=adamw", "optim.lr=1.2e-2", "optim.head_lr=0"),
    "matrix lr half": ("optim.matrix_lr*=0.5",),
    "matrix lr double": ("optim.matrix_lr*=2",),
    "embedding lr half": ("optim.lr*=0.5",),
    "embedding lr 2x": ("optim.lr*=2",),
    "embedding lr 4x": ("optim.lr*=4",),
    "embedding lr 8x": ("optim.lr*=8",),
    "head lr half": ("optim.head_lr*=0.5",),
    "head lr double": ("optim.head_lr*=2",),
    "momentum 0.95": ("optim.momentum=0.95",),
    "momentum 0.8": ("optim.momentum=0.8",),
    "no weight decay": ("optim.weight_decay=0",),
    "weight decay 0.3": ("optim.weight_decay=0.3",),
    "no clipping": ("optim.clip=0",),
    "betas 0.8 0.95": ("optim.betas=[0.8,0.95]",),
    "betas 0.9 0.99": ("optim.betas=[0.9,0.99]",),
    # schedule and batch
    "batch half": ("batch.sequences*=0.5",),
    "batch half, rates 0.7x": ("batch.sequences*=0.5", "optim.lr*=0.7", "optim.head_lr*=0.7", "optim.matrix_lr*=0.7"),
    "batch double": ("batch.sequences*=2",),
    "batch double, rates 1.4x": ("batch.sequences*=2", "optim.lr*=1.4", "optim.head_lr*=1.4", "optim.matrix_lr*=1.4"),
    "no warm-up": ("schedule.warmup=0",),
    "warm-up 10 %": ("schedule.warmup=0.1",),
    "decay 15 %": ("schedule.decay=0.15",),
    "decay 60 %": ("schedule.decay=0.6",),
    "decay 100 %": ("schedule.decay=1",),
    "cosine": ("schedule.name=cosine",),
    "averaged over the last 10 %": ("average.name=tail", "average.share=0.1"),
    "constant, averaged over 20 %": ("schedule.name=constant", "average.name=tail", "average.share=0.2"),
}
FREE = ("optim.", "schedule.", "average.")  # assignments that begin so do not change the time of a step; except for:
TIMED = ("optim.name", "optim.clip", "optim.rounds", "optim.neurons", "optim.cautious_decay")


@dataclass(frozen=True)
class Job:
    """One run: an arm, a seed, and its data."""

    arm: str
    seed: int
    config: RunConfig
    ratio: float

    @property
    def key(self) -> tuple[str, int]:
        return self.arm, self.seed


def fields_of(arm: str) -> tuple[str, ...]:
    """The assignments of an arm: those of ARMS by name, or the given ones."""
    return ARMS[arm] if arm in ARMS else tuple(arm.split())


def costs_time(arm: str) -> bool:
    """Whether the steps of an arm may take longer or shorter than the default's."""
    return any(not field.startswith(FREE) or field.startswith(TIMED) for field in fields_of(arm))


def settle(config: RunConfig, field: str) -> str:
    """FIELD*=FACTOR as FIELD=VALUE, from the value in `config`."""
    name, times, factor = field.partition("*=")
    if not times:
        return field
    value = reduce(getattr, name.split("."), config)
    return f"{name}={type(value)(value * float(factor))}"


def configure(sources: Sequence[str], common: Sequence[str], arm: str, train_bytes: int) -> RunConfig:
    """An arm's configuration on prepared text: first the assignments common to all arms, then the arm's own."""
    fields = [
        "model.layers=4",
        "model.d_model=128",
        "batch.sequences=8",
        "runtime.device=cpu",
        "runtime.dtype=float32",
        "runtime.threads=1",
        "data.vocab_size=1024",
        f"data.max_train_bytes={train_bytes}",
        *common,
    ]
    config = override(RunConfig(data=DataConfig(sources=tuple(sources))), fields)
    base = with_rates(with_recipe(config, Asked.of(fields)))
    config = override(base, [settle(base, field) for field in fields_of(arm)])
    every = replace(config.every, evaluate=0, sample=0, checkpoint=0, log=50, keep=1)
    return replace(config, every=every)


def ratio_to_default(base: RunConfig, config: RunConfig) -> float:
    """Tokens per processor second of `config`, relative to `base`."""
    ratios = []
    for _ in range(PAIRS_OF_TURNS):
        first, second = throughput.time_in_turns([base, config], SECONDS, clock=time.process_time)
        ratios.append(second.tokens_per_second / first.tokens_per_second)
    return statistics.median(ratios)


def run(job: Job) -> dict[str, Any]:
    """Train once and measure the loss on up to 400,000 held-out tokens."""
    config = job.config
    prepared = prepare(config.data)
    with tempfile.TemporaryDirectory() as folder:
        result = train_steps(config, Path(folder) / "run", prepared=prepared)
        model, _, _ = checkpoint.load_model(result.folder)
        found = make_task(config).measure(model, prepared, make_runtime("cpu", "float32", 1), 400_000)
    return {
        "arm": job.arm,
        "seed": job.seed,
        "ratio": job.ratio,
        "steps": config.steps,
        "tokens": result.tokens,
        "flops": result.flops,
        "bits_per_byte": found.bits_per_byte,
    }


def plan_jobs(
    sources: Sequence[str],
    common: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    tokens: float,
    path: Path,
    timed: bool,
) -> list[Job]:
    """The runs that are not in the results yet. The speed of an arm with results is taken from them; unless `timed`,
    all arms read the same number of tokens."""
    known = {(row["arm"], row["seed"]): row for row in read_rows(path)}
    ratios = {row["arm"]: row["ratio"] for row in known.values()}
    base = configure(sources, common, DEFAULT, int(tokens * 6))
    prepare(base.data)
    jobs = []
    for arm in arms:
        wanted = [seed for seed in seeds if (arm, seed) not in known]
        if not wanted:
            continue
        config = configure(sources, common, arm, int(tokens * 6))
        prepare(config.data)
        config, timed_as = (replace(one, steps=steps_for(one, tokens)) for one in (config, base))
        ratio = ratios.get(arm) or (ratio_to_default(timed_as, config) if timed and costs_time(arm) else 1.0)
        steps = steps_for(config, tokens * ratio)
        jobs += [Job(arm, seed, replace(config, seed=seed, steps=steps), ratio) for seed in wanted]
    return sorted(jobs, key=lambda job: job.seed)


def steps_for(config: RunConfig, tokens: float) -> int:
    """The number of steps that reads about so many tokens; a batch that grows needs more."""
    if config.batch.ramp_from:
        return config.batch.steps_for(tokens / config.model.context)
    return round(tokens / config.tokens_per_step)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def compare(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float, float, int, str]]:
    """(arm, speed, difference from the default, half-width of its 95 % interval, seeds, verdict), the best first."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    default = by_arm.pop(DEFAULT)
    differences = {
        arm: [run["bits_per_byte"] - default[seed]["bits_per_byte"] for seed, run in runs.items() if seed in default]
        for arm, runs in by_arm.items()
    }
    lines = []
    for arm, (mean, half) in pooled(differences).items():
        verdict = "better" if mean + half < 0 else "worse" if mean - half > 0 else "no difference shown"
        ratio = next(iter(by_arm[arm].values()))["ratio"]
        lines.append((arm, ratio, mean, half, len(differences[arm]), verdict))
    return sorted(lines, key=lambda line: line[2])


def show(rows: Sequence[dict[str, Any]]) -> None:
    defaults = [row["bits_per_byte"] for row in rows if row["arm"] == DEFAULT]
    if not defaults:
        return
    print(f"default: {statistics.mean(defaults):.4f} bits per byte, {len(defaults)} seeds\n")
    print("| changed | tokens/s | bits per byte, difference | 95 % interval | seeds | verdict |")
    print("|---|---:|---:|---:|---:|---|")
    for arm, ratio, mean, half, seeds, verdict in compare(rows):
        print(f"| {arm} | {ratio:.2f} | {mean:+.4f} | {mean - half:+.4f} to {mean + half:+.4f} | {seeds} | {verdict} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="assignments for all arms")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="of ARMS, or 'FIELD=VALUE ...'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=3e6, help="tokens that the default reads")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, one thread each")
    parser.add_argument("--equal", choices=["seconds", "tokens"], default="seconds")
    parser.add_argument("--show", action="store_true", help="run nothing, print the results in FILE")
    parser.add_argument(
        "--json", action="store_true", help="record it in bench/results/recipe-LAYERSxWIDTH[-NAME].json"
    )
    parser.add_argument("--name", default="", help="with --json: of the record, after recipe-LAYERSxWIDTH-")
    given = parser.parse_args()
    if not given.show:
        carry_out(given)
    rows = read_rows(given.results)
    show(rows)
    if given.json:
        model = configure(given.sources, given.set, DEFAULT, 0).model
        shape = f"{model.layers}x{model.d_model}"
        name = "-".join(filter(None, ["recipe", shape, given.name]))
        losses = {row["seed"]: row["bits_per_byte"] for row in rows if row["arm"] == DEFAULT}
        record(name, {"shape": shape, "tokens": given.tokens, "default": losses, "rows": compare(rows)})


def carry_out(given: argparse.Namespace) -> None:
    """Make the runs that are not in the results yet."""
    arms = list(dict.fromkeys([DEFAULT, *given.arms]))
    timed = given.equal == "seconds"
    jobs = plan_jobs(given.sources, given.set, arms, given.seeds, given.tokens, given.results, timed)
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            row = done.result()
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
