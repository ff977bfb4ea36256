"""The result of a finished run."""

from dataclasses import dataclass
from pathlib import Path

from isoflop.records import read_lines
from isoflop.trainer.state import RunState


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        folder: the run folder.
        step: optimiser steps done.
        loss: mean training loss (config.loss, with auxiliary losses) over the last tenth of the steps logged, nats per
            token.
        heldout_loss: the last held-out loss during the run, nats per token; None if none was measured.
        seconds: of training, without the time between an interruption and its resumption.
        aside_seconds: the part of `seconds` not spent on steps but on evaluation, samples and checkpoints.
        tokens: read in training.
        flops: 6 N D.
    """

    folder: Path
    step: int
    loss: float
    heldout_loss: float | None
    seconds: float
    aside_seconds: float
    tokens: int
    flops: float


def summarize(state: RunState) -> RunResult:
    """The result, from the state at the end and the lines of metrics.jsonl."""
    lines = read_lines(state.folder.log("metrics"))
    losses = [line["loss"] for line in lines if "loss" in line]
    heldout = [line["heldout_loss"] for line in lines if "heldout_loss" in line]
    tail = losses[-max(1, len(losses) // 10) :]
    return RunResult(
        folder=state.folder.path,
        step=state.step,
        loss=sum(tail) / len(tail) if tail else float("nan"),
        heldout_loss=heldout[-1] if heldout else None,
        seconds=state.seconds,
        aside_seconds=state.aside_seconds,
        tokens=state.tokens,
        flops=state.flops,
    )
