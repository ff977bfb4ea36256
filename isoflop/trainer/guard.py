"""Numbers gone wrong: a loss or gradient that is not finite, or far above those of the steps before (a spike).

    (loss, gradient norm) of a step ─> look ─> nothing | Trouble ─> keep · skip · rollback · stop
                                                          └─> a line of skips.jsonl, before anything is done about it

skip      the update is left out: weights, moments and the count of AdamW's bias correction stay as they were; the
          schedule and the data go on
rollback  back to the last checkpoint, and the data of the bad step is passed over: what follows is the run that never
          drew it
stop      the last checkpoint is from before

All decisions are pure functions of plain numbers: the two of the step, those of the good steps before it (kept in the
checkpoint), and the lines on record. Several processes have the same, to the bit, and so each decides by itself what
all decide: the loss is a sum over all, which leaves the same in each; the norm is one as well, or the first one's
(Layout.whole in parallel/shard.py); and the lines on record are those that the first one read (begin.put_back).

The host reads both numbers once a step, before the update. A GPU would be idle until the update is launched then, so
there it is launched first (loop.updates_ahead), with a flag on the device by which the optimisers leave out a step that
is not finite; the host decides the same while the update runs.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isoflop.records import BadSteps, SkipLine
from isoflop.trainer.config import GuardConfig

ACTIONS = ("keep", "skip", "rollback", "stop")
Numbers = tuple[float, float]  # loss in nats per token, and the gradient's norm before clipping


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a step.

    Attributes:
        kind: "non-finite" or "spike".
        action: "keep", "skip", "rollback" or "stop".
        reason: one line for people.
    """

    kind: str
    action: str
    reason: str


def find_trouble(loss: float, norm: float, recent: Sequence[Numbers], config: GuardConfig) -> Trouble | None:
    """Judge a step by its two numbers and those of the good steps before it.

    The rule for spikes is that of OLMo-core's SkipStepOptimizer, with its 128 steps and 6 standard deviations; here
    numbers that are not finite never count among those compared with.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return Trouble("non-finite", config.non_finite, f"loss {loss:.4g}, gradient norm {norm:.4g}")
    if len(recent) < config.window:
        return None
    for name, value, before in zip(("loss", "gradient norm"), (loss, norm), zip(*recent, strict=True), strict=True):
        mean = math.fsum(before) / len(before)
        deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in before) / len(before))
        limit = mean + config.sigmas * deviation
        if value > limit:
            reason = f"{name} {value:.4g} is above {limit:.4g}, {config.sigmas:g} standard deviations over the mean"
            return Trouble("spike", config.spike, reason)
    return None


def must_stop(trouble: Trouble, records: Sequence[SkipLine], config: GuardConfig) -> str:
    """Why the run must not go on after this trouble, the last one on record; empty if it may."""
    if trouble.action == "stop":
        return f"guard.{trouble.kind.replace('-', '_')} is stop"
    if trouble.action == "keep":
        return ""
    bad = [record for record in records if record.action != "keep"]
    row = in_a_row(bad)
    if row >= config.in_a_row:
        return f"{row} bad steps in a row are as many as guard.in_a_row = {config.in_a_row} allows"
    if len(bad) >= config.in_all:
        return f"{len(bad)} bad steps in all are as many as guard.in_all = {config.in_all} allows"
    return ""


def in_a_row(bad: Sequence[SkipLine]) -> int:
    """How many bad steps, the last one included, came without a step of progress between them. The step after one that
    was left out is the next of the run; after a rollback it is the same one again, on other data."""
    if not bad:
        return 0
    up_to = sorted((r for r in bad if r.step <= bad[-1].step), key=lambda r: r.step)
    row = 1
    for before, after in zip(up_to[-2::-1], up_to[:0:-1], strict=True):
        if after.step > before.step + (before.action == "skip"):
            break
        row += 1
    return row


def gaps(records: Iterable[SkipLine]) -> tuple[tuple[int, int], ...]:
    """The ranges of sequences that the rollbacks on record pass over (data/gaps.py)."""
    return tuple((r.first or 0, r.sequences or 0) for r in records if r.action == "rollback")


class Watch:
    """Looks at every step, and remembers the good ones that the next are judged by.

    Args:
        recent: what `state` gave, to go on from.
    """

    def __init__(self, config: GuardConfig, recent: Iterable[Sequence[float]] = ()) -> None:
        self.config = config
        self.recent: deque[Numbers] = deque(((loss, norm) for loss, norm in recent), maxlen=config.window)

    def look(self, loss: float, norm: float) -> Trouble | None:
        """What is wrong with this step, if anything. One that is kept counts among the good ones."""
        trouble = find_trouble(loss, norm, self.recent, self.config)
        if trouble is None or trouble.action == "keep":
            self.recent.append((loss, norm))
        return trouble

    def state(self) -> list[list[float]]:
        """JSON values, for the checkpoint."""
        return [list(numbers) for numbers in self.recent]


def account(records: Sequence[SkipLine]) -> BadSteps:
    """What went wrong in a run, counted."""
    of = {action: [r for r in records if r.action == action] for action in ("keep", "skip", "rollback")}
    return BadSteps(
        spikes_kept=len(of["keep"]),
        steps_left_out=len(of["skip"]),
        left_out_tokens=sum(r.tokens for r in of["skip"]),
        rollbacks=len(of["rollback"]),
        passed_over_tokens=sum(r.tokens for r in of["rollback"]),
    )
