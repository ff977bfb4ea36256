"""A whole run with diagnostics: what happens inside the model while it trains, as measures."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured, log10
from isoflop.lab.procedures.train import MEASURES, whole_run
from isoflop.records import DiagnosticsLine, read_lines
from isoflop.trainer.diagnose import Diagnose
from isoflop.trainer.task import make_task

TIMES = 8  # measurements along a run, where options.times says nothing
LOGARITHMIC = (
    "covariate_shift",
    "sharpness",
    "gradient_norm",
    "activation_norm",
    "rank_residual",
    "update_ratio",
    "leakage",
)
LINEAR = ("shift_cosine", "attention_entropy", "load_entropy")
DIAGNOSTICS = (*LOGARITHMIC, *LINEAR)
DIAGNOSED = (*MEASURES, *DIAGNOSTICS)


def diagnosed(job: Job) -> Measured:
    """Train on text as `train` does, and measure the model on a fixed batch `options.times` times along the run
    (trainer/diagnose/measures.py), outside the steps: the run has the same bits without.

    Each measure is a mean over these times and over the blocks: of log10 for LOGARITHMIC, which have positive values of
    any size, as it is for LINEAR. `covariate_shift` is the relative change of a block's gradient when the layers below
    it take their update (Santurkar et al. 2018, 1805.11604, definition 2.1), `shift_cosine` the cosine of the two
    gradients. A measure that a model does not have is missing. Lists: `step`, and each measure by step.
    """
    times = job.options.get("times", TIMES)
    if type(times) is not int or times < 1:
        raise UserError(f"options.times = {times!r} is not a positive number of measurements")
    every = replace(job.config.every, diagnose=max(1, job.config.steps // times))
    measured = replace(job, config=replace(job.config, every=every))
    return whole_run(measured, make_task(job.config), [Diagnose()], lambda model, prepared, run: summary(run))


def summary(run: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Means and lists over the lines that have an update after them and a gradient in every block: not the first, where
    branches that are initialised with zeros have none behind them."""
    lines = [DiagnosticsLine.read(line) for line in read_lines(run / "diagnostics.jsonl")]
    lines = [line for line in lines if "covariate_shift" in line.by_layer and (line.step or 0) > 1]
    lists = {"step": [float(line.step or 0) for line in lines]}
    measures = {}
    for name in DIAGNOSTICS:
        values = [over_blocks(name, line) for line in lines]
        if lines and not any(value is None for value in values):
            lists[name] = [value for value in values if value is not None]
            measures[name] = sum(lists[name]) / len(lines)
    return measures, lists


def over_blocks(name: str, line: DiagnosticsLine) -> float | None:
    """A measure's mean over the blocks, or its value for the whole model; None if it is in neither."""
    if name in line.whole:
        found: Mapping[Any, float] = {"": line.whole[name]}
    else:
        found = {layer: value for layer, value in line.by_layer.get(name, {}).items() if layer.isdigit()}
    values = [log10(abs(value)) if name in LOGARITHMIC else value for value in found.values()]
    return sum(values) / len(values) if values and all(map(math.isfinite, values)) else None
