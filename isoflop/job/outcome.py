"""The final evaluation of a model."""

import itertools
from dataclasses import replace
from typing import Any

from isoflop.measure import HeldOut
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import HeldOutPieces
from isoflop.runtime import Runtime, utilisation
from isoflop.trainer.config import RuntimeConfig
from isoflop.trainer.task import Task

MOST_PIECES = 256  # stretches in heldout.json


def judge(
    task: Task,
    model: Any,
    data: Any,
    runtime: Runtime,
    max_tokens: int = 0,
    beam: int = 1,
    group: Group = ALONE,
    pieces: bool = False,
) -> HeldOut:
    """Held-out loss of a model and, on rank 0, the other metrics of its task.

    Args:
        max_tokens: of the held-out text; 0: all.
        beam: beam width, for tasks whose outputs are found by beam search.
        pieces: also return the loss of each sequence.
    """
    heldout = task.measure(model, data, runtime, max_tokens, group, pieces)
    return replace(heldout, task_metrics=task.judge(model, data, beam)) if group.first else heldout


def pieces_of(heldout: HeldOut, fingerprint: str) -> HeldOutPieces:
    """heldout.json: the held-out loss in at most MOST_PIECES stretches of adjacent sequences, so that runs on the same
    text can be compared stretch by stretch."""
    sequences, count = heldout.pieces, min(MOST_PIECES, len(heldout.pieces))
    bounds = [round(index * len(sequences) / count) for index in range(count + 1)]
    parts = [sequences[first:last] for first, last in itertools.pairwise(bounds)]
    nats = tuple(round(sum(piece[0] for piece in part), 4) for part in parts)
    tokens, sizes = (tuple(sum(int(piece[index]) for piece in part) for part in parts) for index in (1, 2))
    return HeldOutPieces(fingerprint=fingerprint, nats=nats, tokens=tokens, bytes=sizes)


def mfu(flops_per_token: float | None, runtime: RuntimeConfig, tokens_per_second: float, group: Group) -> float | None:
    """Model FLOPs utilisation as defined for PaLM (2204.02311, appendix B), relative to the peak in bfloat16 on the
    GPU's data sheet. None for other devices and dtypes, for unknown GPUs, and for tasks that it does not apply to.

    Args:
        flops_per_token: by PaLM's convention; None where the task has none (Task.palm_flops_per_token).
        runtime: the run's, resolved.
    """
    if flops_per_token is None:
        return None
    per_device = tokens_per_second / group.machines(runtime.device)
    return utilisation(flops_per_token * per_device, runtime.device, runtime.dtype)
