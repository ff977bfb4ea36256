"""A whole run of the trainer, and its measures."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop import checkpoint
from isoflop.data.prepared import Prepared
from isoflop.lab.procedures.job import LOSSES, Job, Measured
from isoflop.lab.procedures.ngram import unigram_bits_per_byte
from isoflop.records import read_lines
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer import train as train_steps
from isoflop.trainer.hooks import HeldOut, Hook
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.task import make_task

Further = Callable[[Any, Any, Path], tuple[dict[str, float], dict[str, list[float]]]]
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
)
JUDGED = ("exact_match", "unit_error_rate")  # of pairs


class SharedOrder:
    """A task whose batches come in the order of a seed of their own, which the arms of a pair share, whatever
    `config.seed` draws the initial weights. Everything else is the task's."""

    def __init__(self, task: Any, order: int) -> None:
        self._task, self._order = task, order

    def batches(self, config: RunConfig, data: Any, skipped: tuple[tuple[int, int], ...] = ()) -> Any:
        return self._task.batches(replace(config, seed=self._order), data, skipped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def train(job: Job) -> Measured:
    """Train on text and measure held-out text. A run that diverges is an outcome: its loss is infinite, and it failed.

    Measures: held-out `bits_per_byte` and `nats_per_token`; `excess_over_unigram`, bits per byte above (below 0: better
    than) a unigram model of the training text; `failed`, 1 for a run that diverged or learned no more than such a
    model, else 0; `train_loss`, nats per token over the last tenth; `parameters` of all kinds, `tokens`, `flops`
    (6 N D), `seconds` of steps.
    """
    return whole_run(job, make_task(job.config))


def whole_run(job: Job, task: Any, hooks: Sequence[Hook] = (), further: Further | None = None) -> Measured:
    """One run with the trainer in a temporary folder: the measures of `train`, those of `task.judge` (of pairs
    `exact_match` and `unit_error_rate`), and what `further` measures of the trained model.

    Args:
        task: what is learned; its batches come in the order of `job.order`.
        further: (model, prepared data, run folder) -> measures and lists; not called for a run that diverged.
    """
    config = job.config
    prepared = task.prepare_data(config.data)

    with tempfile.TemporaryDirectory(prefix="isoflop-lab-") as folder:
        run = Path(folder) / "run"
        shared: Any = SharedOrder(task, job.order)
        try:
            result: RunResult | None = train_steps(
                config, run, prepared=prepared, task=shared, hooks=[HeldOut(), *hooks]
            )
        except Diverged:
            result = None
        lists = curve(run)
        if result is None:
            return Measured(lost(), lists, diverged=True)

        model, _, _ = checkpoint.load_model(run)
        runtime = make_runtime("cpu", config.runtime.dtype, config.runtime.threads)
        heldout = task.measure(model, prepared, runtime, HELDOUT_TOKENS)
        if not math.isfinite(heldout.bits_per_byte):
            return Measured(lost(), lists, diverged=True)
        judged = {name: value for name, value in task.judge(model, prepared).items() if type(value) in (int, float)}
        more, more_lists = further(model, prepared, run) if further else ({}, {})

    bits = heldout.bits_per_byte
    unigram = unigram_bits_per_byte(config, prepared, HELDOUT_TOKENS) if isinstance(prepared, Prepared) else math.inf
    measures = {
        "bits_per_byte": bits,
        "nats_per_token": heldout.nats_per_token,
        "excess_over_unigram": bits - unigram if math.isfinite(unigram) else 0.0,
        "failed": float(bits >= unigram),
        "train_loss": result.loss,
        "parameters": float(sum(map(numel, model.parameters()))),
        "tokens": float(result.tokens),
        "flops": result.flops,
        "seconds": result.seconds - result.aside_seconds,
        **{name: float(value) for name, value in judged.items() if name in JUDGED},
        **more,
    }
    return Measured(measures, lists | more_lists)


def lost() -> dict[str, float]:
    """The measures of a run that diverged: infinite losses."""
    return {**dict.fromkeys(LOSSES, math.inf), "failed": 1.0, "exact_match": 0.0}


def curve(run: Path) -> dict[str, list[float]]:
    """The held-out measurements along the way, with what each cost by then."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if "heldout_bits_per_byte" in line]
    names = {"tokens": "tokens", "flops": "flops", "seconds": "seconds", "heldout": "heldout_bits_per_byte"}
    return {name: [float(line[key]) for line in lines] for name, key in names.items()}


def numel(parameter: Any) -> int:
    return int(parameter.numel())
