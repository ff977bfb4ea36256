"""A whole run on some of the claim's sources, measured on the held-out text of each of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from isoflop.data.corpus import parse_sources
from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.train import whole_run
from isoflop.runtime import make_runtime
from isoflop.trainer.task import make_task

ON = "on_"  # on_books: bits per byte on the held-out text of the source `books`


def across(job: Job) -> Measured:
    """Train on text as `train` does; `on_NAME` is the held-out bits per byte of each source that the configuration
    names as held out, and `bits_per_byte` that of all of them together.

    Raises:
        UserError: if it names none, as where only the prepared data were sent (--ray).
    """
    config, task = job.config, make_task(job.config)
    if not config.data.heldout:
        raise UserError("held-out text of each source is not sent to other machines: run this claim without --ray")

    def on_each(model: Any, prepared: Any, run: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
        runtime = make_runtime("cpu", config.runtime.dtype, config.runtime.threads)
        measures = {}
        for source, text in zip(parse_sources(config.data.heldout), config.data.heldout, strict=True):
            alone = replace(config.data, sources=(text,), heldout=(), path="")
            measures[f"{ON}{source.name}"] = task.measure_sources(
                model, prepared.tokenizer, alone, runtime
            ).bits_per_byte
        return measures, {}

    return whole_run(job, task, further=on_each)
