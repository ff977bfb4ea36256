"""What a model is judged by."""

import itertools
from dataclasses import replace
from typing import Any

from isoflop.measure import HeldOut
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import HeldOutPieces
from isoflop.runtime import Runtime, utilisation
from isoflop.trainer.config import RuntimeConfig
from isoflop.trainer.task import Task

FINAL_TOKENS = 4_000_000  # held-out tokens measured at the end; all of them where there are fewer
MOST_PIECES = 256  # that are kept of them


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
    """Held-out loss of a model, of each sequence too where `pieces` asks for it, and what its task is judged by next to
    it."""
    found = task.measure(model, data, runtime, max_tokens, group, pieces)
    return replace(found, beside=task.judge(model, data, beam)) if group.first else found


def pieces_of(reached: HeldOut, fingerprint: str) -> HeldOutPieces:
    """heldout.json: what was measured, in at most MOST_PIECES stretches of neighbouring sequences, so that runs on the
    same text can be compared stretch by stretch."""
    each, count = reached.pieces, min(MOST_PIECES, len(reached.pieces))
    bounds = [round(index * len(each) / count) for index in range(count + 1)]
    parts = [each[first:last] for first, last in itertools.pairwise(bounds)]
    nats = tuple(round(sum(piece[0] for piece in part), 4) for part in parts)
    tokens, sizes = (tuple(sum(int(piece[index]) for piece in part) for part in parts) for index in (1, 2))
    return HeldOutPieces(fingerprint=fingerprint, nats=nats, tokens=tokens, bytes=sizes)


def mfu(flops_per_token: float | None, ran: RuntimeConfig, tokens_per_second: float, group: Group) -> float | None:
    """Model FLOPs utilisation as PaLM counts it (2204.02311, appendix B), of the GPUs' data sheet in bfloat16; None for
    other devices and dtypes, for cards whose data sheet is not known, and for tasks that it does not apply to.

    Args:
        flops_per_token: by PaLM's convention; None where the task has none (Task.palm_flops_per_token).
        ran: the run's resolved runtime.
    """
    if flops_per_token is None:
        return None
    each = tokens_per_second / group.machines(ran.device)
    return utilisation(flops_per_token * each, ran.device, ran.dtype)
