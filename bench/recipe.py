"""What each part of the default recipe is worth: one thing changed at a time, at equal seconds, with seeds.

    python bench/recipe.py SOURCE ... --results FILE.jsonl [--set FIELD=VALUE ...] [--arms NAME ...] [--seeds 0 1 2]
                           [--tokens 3e6] [--workers 2] [--equal seconds|tokens]

needs the extra `bench` (scipy). The default is trained for `--tokens` tokens. An arm is trained for as many as it reads
in the same seconds: its step and the default's are timed in turns, and the ratio decides, so that a machine whose speed
drifts does not; with `--equal tokens` for as many, which is the same for what costs no time, such as a rate. Every run
ends its own decay. What is compared is held-out bits per byte, which does not depend on the vocabulary; the difference
from the default is taken seed by seed (one seed draws the same data in the same order for both, where the batch is the
same), and its 95 % interval is Student's over the seeds.

Results are added to FILE, one line a run; what is there already is not run again.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scipy import stats

from isoflop import checkpoint
from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.data.prepare import prepare
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer import train as train_steps
from isoflop.trainer.task import make_task

DEFAULT = "default"
PAIRS_OF_TURNS = 3  # separate timings of an arm beside the default, of which the median counts
SECONDS = 3.0  # of steps, for each side of one timing

# name -> what is set. One thing each; where two fields say one thing (a batch and its rate) both are arms of their own.
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
    "value embeddings every layer": ("model.value_embedding=1",),
    "value embeddings every second layer": ("model.value_embedding=2",),
    "value embeddings every second layer, no gate": ("model.value_embedding=2", "model.value_gate=false"),
    "logit cap 15": ("model.logit_cap=15",),
    "logit cap 30": ("model.logit_cap=30",),
    "tied head": ("model.tied_head=true",),
    "init gpt2": ("model.init=gpt2",),
    "multi-query": ("model.attention.kv_heads=1",),
    "feed-forward 3x": ("model.feed_forward.ratio=3",),
    "feed-forward 6x": ("model.feed_forward.ratio=6",),
    "context half": ("model.context=128",),
    "vocabulary half": ("data.vocab_size=512", "model.vocab_size=512"),
    "vocabulary double": ("data.vocab_size=2048", "model.vocab_size=2048"),
    # optimiser
    "adamw, lr 3e-3": ("optim.name=adamw", "optim.lr=3e-3"),
    "adamw, lr 6e-3": ("optim.name=adamw", "optim.lr=6e-3"),
    "matrix lr half": ("optim.matrix_lr=0.0075",),
    "matrix lr double": ("optim.matrix_lr=0.03",),
    "lr half": ("optim.lr=5e-3",),
    "lr double": ("optim.lr=2e-2",),
    "momentum 0.95": ("optim.momentum=0.95",),
    "no weight decay": ("optim.weight_decay=0",),
    "weight decay 0.3": ("optim.weight_decay=0.3",),
    "no clipping": ("optim.clip=0",),
    "betas 0.8 0.95": ("optim.betas=0.8,0.95",),
    # schedule and batch
    "batch half": ("batch.sequences=4",),
    "batch double": ("batch.sequences=16",),
    "no warm-up": ("schedule.warmup=0",),
    "warm-up 10 %": ("schedule.warmup=0.1",),
    "decay 15 %": ("schedule.decay=0.15",),
    "decay 60 %": ("schedule.decay=0.6",),
    "decay 100 %": ("schedule.decay=1",),
    "cosine": ("schedule.name=cosine",),
}


@dataclass(frozen=True)
class Job:
    """One run: an arm, a seed, and what it is trained on."""

    arm: str
    seed: int
    config: RunConfig
    ratio: float

    @property
    def key(self) -> tuple[str, int]:
        return self.arm, self.seed


def fields_of(arm: str) -> tuple[str, ...]:
    """What an arm sets: one of ARMS by its name, or assignments as they are."""
    return ARMS[arm] if arm in ARMS else tuple(arm.split())


def configure(sources: Sequence[str], common: Sequence[str], arm: str, train_bytes: int) -> RunConfig:
    """The arm's configuration on prepared text: the fields that are common to all, then the arm's own."""
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
        *fields_of(arm),
    ]
    config = override(RunConfig(data=DataConfig(sources=tuple(sources))), fields)
    every = replace(config.every, evaluate=0, sample=0, checkpoint=0, log=50, keep=1)
    return replace(config, every=every)


def ratio_to_default(base: RunConfig, config: RunConfig) -> float:
    """Tokens per second of `config` over those of `base`."""
    ratios = []
    for _ in range(PAIRS_OF_TURNS):
        first, second = throughput.time_in_turns([base, config], SECONDS)
        ratios.append(second.tokens_per_second / first.tokens_per_second)
    return statistics.median(ratios)


def run(job: Job) -> dict[str, Any]:
    """Train once and measure all the held-out text up to 400,000 tokens."""
    prepared = prepare(job.config.data)
    with tempfile.TemporaryDirectory() as folder:
        result = train_steps(job.config, Path(folder) / "run", prepared=prepared)
        model, _, _ = checkpoint.load_model(result.folder)
        found = make_task(job.config).measure(model, prepared, make_runtime("cpu", "float32", 1), 400_000)
    return {
        "arm": job.arm,
        "seed": job.seed,
        "ratio": job.ratio,
        "steps": job.config.steps,
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
    """The runs that are not in the results yet; the speed of an arm that is there is taken from there. Not `timed`: all
    arms read as much."""
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
        ratio = ratios.get(arm) or (ratio_to_default(base, config) if timed and arm != DEFAULT else 1.0)
        steps = round(tokens * ratio / config.tokens_per_step)
        jobs += [Job(arm, seed, replace(config, seed=seed, steps=steps), ratio) for seed in wanted]
    return sorted(jobs, key=lambda job: job.seed)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def compare(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float, float, int, str]]:
    """(arm, speed, difference from the default, half its 95 % interval, seeds, verdict) from the best down."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["seed"]] = row
    lines = []
    for arm, runs in by_arm.items():
        seeds = sorted(runs.keys() & by_arm[DEFAULT].keys())
        if arm == DEFAULT or not seeds:
            continue
        differences = [runs[s]["bits_per_byte"] - by_arm[DEFAULT][s]["bits_per_byte"] for s in seeds]
        half = math.inf
        if len(seeds) > 1:
            half = float(stats.t.ppf(0.975, len(seeds) - 1)) * statistics.stdev(differences) / math.sqrt(len(seeds))
        mean = statistics.mean(differences)
        verdict = "better" if mean + half < 0 else "worse" if mean - half > 0 else "no difference shown"
        lines.append((arm, runs[seeds[0]]["ratio"], mean, half, len(seeds), verdict))
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
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="for all arms")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="of ARMS, or 'FIELD=VALUE ...'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tokens", type=float, default=3e6, help="that the default reads")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--equal", choices=["seconds", "tokens"], default="seconds")
    given = parser.parse_args()
    arms = list(dict.fromkeys([DEFAULT, *given.arms]))
    timed = given.equal == "seconds"
    jobs = plan_jobs(given.sources, given.set, arms, given.seeds, given.tokens, given.results, timed)
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, job) for job in jobs]):
            row = done.result()
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    show(read_rows(given.results))


if __name__ == "__main__":
    main()
