"""Writes the checkpoints of a run while training continues, and decides which of them are kept.

    save ─> copy in memory ─> a thread: write the checkpoint, then delete those that are no longer needed
              training continues

At most one is being written; the next save waits for it. A disk error in the thread is raised in the run, at the next
step. The copy takes main memory, from the save until it is written: per parameter 4 bytes for the weights, 4 (Muon) or
8 (AdamW) for the optimiser, 4 for their average if there is one, and 4 for the decay probe (decay_probe.py) if there is
one. The files are the same, bit for bit, as when written in the foreground.
"""

import math
import threading
from collections.abc import Collection, Sequence

from isoflop import checkpoint
from isoflop.config import to_dict
from isoflop.errors import quoted
from isoflop.parallel.mesh import ALONE, Group
from isoflop.trainer.config import EveryConfig
from isoflop.trainer.state import RunState


class Saver:
    """Writes checkpoints.

    Args:
        every: which checkpoints are kept, and whether they are written in the background.
        group: several processes write their shards, and rank 0 deletes old checkpoints. They never write in the
            background, since the collectives of writing would interfere with those of the steps.
    """

    def __init__(self, every: EveryConfig, group: Group = ALONE) -> None:
        self.every, self.background = every, every.background and group.alone
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: RunState) -> int:
        """Write a checkpoint of the run, and delete those that are no longer needed.

        After a discarded step nothing is deleted: the weights may be at fault, and older checkpoints good.

        Returns:
            The step that was saved.
        """
        probe = state.probe
        pending = checkpoint.take(
            state.folder.checkpoints,
            step=state.step,
            model=state.model,
            optimizers=state.optimizers,
            config=to_dict(state.config),
            tokenizer=state.prepared.tokenizer.to_json(),
            fingerprint=state.prepared.fingerprint,
            progress={
                "seconds": state.seconds,
                "aside": state.aside_seconds,
                "tokens": state.tokens,
                "recent": state.watch.state(),
                **({"averaged": state.average.points} if state.average.points else {}),
                **({"probe": probe.count} if probe is not None else {}),
            },
            average=state.average.tensors(),
            more=probe.tensors() if probe is not None else {},
            copied=self.background,
        )

        doubtful = any(line.step == state.step and line.action != "keep" for line in state.skips)
        if doubtful:
            self.wait()  # one that is still being written is kept too
            keep = checkpoint.steps(state.folder.checkpoints)
        else:
            decay = state.timetable.decay_step
            keep = [] if decay is None else [decay]
        self.write(pending, state.heldout, keep)
        return state.step

    def write(self, pending: checkpoint.Pending, heldout: Sequence[tuple[int, float]], keep: Collection[int]) -> None:
        """Write a checkpoint after the previous one is written, and delete those that are no longer needed.

        Args:
            pending: if `background`, its tensors must not change any more.
            heldout: (step, loss) of the evaluations so far.
            keep: further steps whose checkpoints are kept.

        Raises:
            UserError: for a disk error with this checkpoint or the previous one.
        """
        self.wait()
        if not self.background:
            write_and_prune(pending, self.every, heldout, keep)
            return
        arguments = (pending, self.every, tuple(heldout), tuple(keep))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def _write(
        self,
        pending: checkpoint.Pending,
        every: EveryConfig,
        heldout: Sequence[tuple[int, float]],
        keep: Collection[int],
    ) -> None:
        try:
            write_and_prune(pending, every, heldout, keep)
        except BaseException as error:  # raised again in the main thread, by `check`
            self._error = error

    def check(self) -> None:
        """Raise the error of the background thread, if there is one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Wait until nothing is being written any more; raise the thread's error."""
        self.finish()
        self.check()

    def finish(self) -> None:
        """Like `wait`, for a run that ends for another reason: an error of the thread is not raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class NoSaver(Saver):
    """Writes no checkpoints. For pilots, which rank 0 trains alone: writing one would wait for the other processes."""

    def save(self, state: RunState) -> int:
        return state.step


def write_and_prune(
    pending: checkpoint.Pending,
    every: EveryConfig,
    heldout: Sequence[tuple[int, float]],
    keep: Collection[int],
) -> None:
    folder = pending.final.parent
    checkpoint.write(pending, then=f"isoflop train --resume {quoted(folder.parent)}")
    also_keep = checkpoints_to_keep(checkpoint.steps(folder), every, heldout)
    checkpoint.prune(folder, every.keep, keep={*also_keep, *keep})


def checkpoints_to_keep(steps: Sequence[int], every: EveryConfig, heldout: Sequence[tuple[int, float]]) -> set[int]:
    """The checkpoints kept in addition to the last ones: the best, and every `every.keep_every` steps.

    The best has the lowest held-out loss in the last evaluation up to its step; of equal ones, the first.
    """
    keep = {step for step in steps if every.keep_every and step % every.keep_every == 0}
    losses = {step: loss for step in steps if (loss := loss_at(step, heldout)) is not None}
    if every.keep_best and losses:
        keep.add(min(losses, key=lambda step: (losses[step], step)))
    return keep


def loss_at(step: int, heldout: Sequence[tuple[int, float]]) -> float | None:
    """The last held-out loss measured up to a step; None if there is none."""
    earlier = [(measured_at, loss) for measured_at, loss in heldout if measured_at <= step and math.isfinite(loss)]
    return max(earlier)[1] if earlier else None
