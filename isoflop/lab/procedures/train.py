"""A whole run of the trainer, and what it came to."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop import checkpoint
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.ngram import unigram_bits_per_byte
from isoflop.model.count import count
from isoflop.records import read_lines
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer import train as train_steps
from isoflop.trainer.hooks import HeldOut
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.task import make_task

HELDOUT_TOKENS = 400_000  # measured at the end; all of them where there are fewer
MEASURES = (
    "bits_per_byte",
    "nats_per_token",
    "excess_over_unigram",
    "failed",
    "train_loss",
    "parameters",
    "tokens",
    "flops",
    "seconds",
    "exact_match",
    "unit_error_rate",
)


class SharedOrder:
    """A task whose batches come in the order of a seed of their own: arms share it, and their first weights differ or
    not by `config.seed`. All else is the task's."""

    def __init__(self, task: Any, order: int) -> None:
        self._task, self._order = task, order

    def batches(self, config: RunConfig, data: Any, skipped: tuple[tuple[int, int], ...] = ()) -> Any:
        return self._task.batches(replace(config, seed=self._order), data, skipped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def train(job: Job) -> Measured:
    """Train and measure held-out text. A run that diverges is an outcome: its loss is infinite, and it has failed.

    Measures: held-out `bits_per_byte` and `nats_per_token`; `excess_over_unigram`, bits per byte above (below 0: better
    than) what the words' frequencies alone give; `failed`, 1 for a run that diverged or learned no more than those
    frequencies, else 0; `train_loss`, nats per token over the last tenth; `parameters` of all kinds, `tokens`, `flops`
    (6 N D), `seconds` of steps; for pairs `exact_match` and `unit_error_rate`.
    """
    config, task = job.config, make_task(job.config)
    prepared = task.prepare_data(config.data)
    with tempfile.TemporaryDirectory(prefix="isoflop-lab-") as folder:
        run = Path(folder) / "run"
        try:
            shared: Any = SharedOrder(task, job.order)
            result: RunResult | None = train_steps(config, run, prepared=prepared, task=shared, hooks=[HeldOut()])
        except Diverged:
            result = None
        lists = curve(run)
        if result is None:
            return Measured(lost(config), lists, diverged=True)

        model, _, _ = checkpoint.load_model(run)
        runtime = make_runtime("cpu", config.runtime.dtype, config.runtime.threads)
        found = task.measure(model, prepared, runtime, HELDOUT_TOKENS)
        beside = {name: value for name, value in task.judge(model, prepared).items() if type(value) in (int, float)}
        parameters = (
            float(count(model).total) if config.task == "causal_lm" else float(sum(map(numel, model.parameters())))
        )

    bits = found.bits_per_byte
    if not math.isfinite(bits):
        return Measured(lost(config), lists, diverged=True)
    least = unigram_bits_per_byte(config, prepared, HELDOUT_TOKENS) if config.task == "causal_lm" else math.inf
    measures = {
        "bits_per_byte": bits,
        "nats_per_token": found.nats_per_token,
        "excess_over_unigram": bits - least if math.isfinite(least) else 0.0,
        "failed": float(bits >= least),
        "train_loss": result.loss,
        "parameters": parameters,
        "tokens": float(result.tokens),
        "flops": result.flops,
        "seconds": result.seconds - result.aside_seconds,
        **{name: float(value) for name, value in beside.items() if name in MEASURES},
    }
    return Measured(measures, lists)


def lost(config: RunConfig) -> dict[str, float]:
    """What a run that diverged measures: infinite losses."""
    worse = ("bits_per_byte", "nats_per_token", "excess_over_unigram", "train_loss", "unit_error_rate")
    return {**dict.fromkeys(worse, math.inf), "failed": 1.0, "exact_match": 0.0}


def curve(run: Path) -> dict[str, list[float]]:
    """The held-out measurements along the way, with what each cost by then."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if "heldout_bits_per_byte" in line]
    names = {"tokens": "tokens", "flops": "flops", "seconds": "seconds", "heldout": "heldout_bits_per_byte"}
    return {name: [float(line[key]) for line in lines] for name, key in names.items()}


def numel(parameter: Any) -> int:
    return int(parameter.numel())
