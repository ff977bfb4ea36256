"""Judges each step: a non-finite loss or gradient, or one far above those of the steps before (a loss spike).

    (loss, gradient norm) of a step ─> judge ─> nothing | Trouble ─> keep · skip · rollback · stop
                                                          └─> a line of skips.jsonl, before any action

skip      discard the update: weights, moments and the count of AdamW's bias correction are unchanged; schedule and data
          continue
rollback  return to the last checkpoint and skip the data of the bad step: the run continues as if it had never read it
stop      end the run; the last checkpoint is from before

All decisions are pure functions of plain numbers: loss and norm of the step, those of the good steps before it (kept in
the checkpoint), and the recorded lines. Several processes have the same numbers, to the bit, so each makes the same
decision by itself: the loss is a sum over all processes; the norm is a sum too, or that of rank 0 (Layout.global_norm
in parallel/shard.py); the recorded lines are those that rank 0 read (begin.restore).

The host reads both numbers once per step, before the update. A GPU would be idle until then, so on a GPU the update is
launched first (step.updates_ahead), with a flag on the device that makes the optimisers discard a non-finite step; the
host makes the same decision while the update runs.
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
    """A bad step.

    Attributes:
        kind: "non-finite" or "spike".
        action: "keep", "skip", "rollback" or "stop".
        reason: one line for the user.
    """

    kind: str
    action: str
    reason: str


def find_trouble(loss: float, norm: float, recent: Sequence[Numbers], config: GuardConfig) -> Trouble | None:
    """Judge a step by its loss and norm and those of the good steps before it.

    The rule for spikes is that of OLMo-core's SkipStepOptimizer, with its 128 steps and 6 standard deviations;
    non-finite numbers are never among those compared with.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return Trouble("non-finite", config.non_finite, f"loss {loss:.4g}, gradient norm {norm:.4g}")
    if len(recent) < config.window:
        return None

    for name, value, earlier in zip(("loss", "gradient norm"), (loss, norm), zip(*recent, strict=True), strict=True):
        mean = math.fsum(earlier) / len(earlier)
        deviation = math.sqrt(math.fsum((number - mean) ** 2 for number in earlier) / len(earlier))
        limit = mean + config.sigmas * deviation
        if value > limit:
            reason = f"{name} {value:.4g} is above {limit:.4g}, {config.sigmas:g} standard deviations over the mean"
            return Trouble("spike", config.spike, reason)
    return None


def must_stop(trouble: Trouble, records: Sequence[SkipLine], config: GuardConfig) -> str:
    """Why the run must stop after this trouble, the last one on record; "" if it need not."""
    if trouble.action == "stop":
        return f"guard.{trouble.kind.replace('-', '_')} is stop"
    if trouble.action == "keep":
        return ""
    bad_steps = [record for record in records if record.action != "keep"]
    run_length = in_a_row(bad_steps)
    if run_length >= config.in_a_row:
        return f"{run_length} bad steps in a row are as many as guard.in_a_row = {config.in_a_row} allows"
    if len(bad_steps) >= config.in_all:
        return f"{len(bad_steps)} bad steps in all are as many as guard.in_all = {config.in_all} allows"
    return ""


def in_a_row(bad: Sequence[SkipLine]) -> int:
    """How many bad steps, the last one included, occurred without a good step between them. After a discarded step
    comes the next step of the run; after a rollback the same step again, with other data."""
    if not bad:
        return 0
    ordered = sorted((r for r in bad if r.step <= bad[-1].step), key=lambda r: r.step)
    length = 1
    for before, after in zip(ordered[-2::-1], ordered[:0:-1], strict=True):
        if after.step > before.step + (before.action == "skip"):
            break
        length += 1
    return length


def gaps(records: Iterable[SkipLine]) -> tuple[tuple[int, int], ...]:
    """The ranges of sequences that recorded rollbacks skip (data/gaps.py)."""
    return tuple((r.first or 0, r.sequences or 0) for r in records if r.action == "rollback")


class Watch:
    """Judges every step, and keeps the numbers of recent good ones for comparison.

    Args:
        recent: the value of `state` at a checkpoint.
    """

    def __init__(self, config: GuardConfig, recent: Iterable[Sequence[float]] = ()) -> None:
        self.config = config
        self.recent: deque[Numbers] = deque(((loss, norm) for loss, norm in recent), maxlen=config.window)

    def judge(self, loss: float, norm: float) -> Trouble | None:
        """The trouble of this step, or None. A spike that is kept counts as a good step."""
        trouble = find_trouble(loss, norm, self.recent, self.config)
        if trouble is None or trouble.action == "keep":
            self.recent.append((loss, norm))
        return trouble

    def state(self) -> list[list[float]]:
        """The recent numbers as JSON values, for the checkpoint."""
        return [list(numbers) for numbers in self.recent]


def count_bad_steps(records: Sequence[SkipLine]) -> BadSteps:
    """The counts of a run's bad steps."""
    by_action = {action: [r for r in records if r.action == action] for action in ("keep", "skip", "rollback")}
    return BadSteps(
        spikes_kept=len(by_action["keep"]),
        steps_left_out=len(by_action["skip"]),
        left_out_tokens=sum(r.tokens for r in by_action["skip"]),
        rollbacks=len(by_action["rollback"]),
        passed_over_tokens=sum(r.tokens for r in by_action["rollback"]),
    )
