"""Checkpoints of a run: written while its steps go on, and which of them stay.

    save ─> copy in memory ─> a thread: write it whole, then drop what is no longer wanted
              the steps go on

At most one is being written; the next save waits for it. What a thread's disk refuses is raised in the run, at the next
step. The copy takes main memory: per parameter 4 bytes for the weights and 4 (Muon) or 8 (AdamW) for the optimiser,
from the save until it is written. What lies on the disk is bit for bit what writing at once would have put there.
"""

import math
import threading
from collections.abc import Collection, Sequence

from isoflop import checkpoint
from isoflop.config import to_dict
from isoflop.parallel.mesh import ALONE, Group
from isoflop.trainer.config import EveryConfig
from isoflop.trainer.state import RunState


class Saver:
    """Writes checkpoints.

    Args:
        every: which stay, and whether they are written in the background.
        group: of several processes each writes its part, and the first one drops. They write at once and never in the
            background: what they exchange in writing would get between what they exchange in the steps.
    """

    def __init__(self, every: EveryConfig, group: Group = ALONE) -> None:
        self.every, self.background = every, every.background and group.alone
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: RunState) -> int:
        """Have a checkpoint of the run written, and those dropped that are no longer wanted.

        After a discarded step nothing is dropped: the weights may be what is wrong, and the older ones good.

        Returns:
            The step that was saved.
        """
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
                "aside": state.aside,
                "tokens": state.tokens,
                "recent": state.watch.state(),
            },
            copied=self.background,
        )

        doubtful = any(line.step == state.step and line.action != "keep" for line in state.skips)
        if doubtful:
            self.wait()  # one that is still being written stays too
            stay = checkpoint.steps(state.folder.checkpoints)
        else:
            decay = state.timetable.decay_step
            stay = [] if decay is None else [decay]
        self.write(pending, state.heldout, stay)
        return state.step

    def write(self, pending: checkpoint.Pending, heldout: Sequence[tuple[int, float]], also: Collection[int]) -> None:
        """Write a checkpoint, once the one before is written, and drop those no longer wanted.

        Args:
            pending: of tensors that nothing will change, if `background`.
            heldout: (step, loss) of the measurements so far.
            also: steps whose checkpoints stay.

        Raises:
            UserError: if the disk refused this one or the one before.
        """
        self.wait()
        if not self.background:
            write_and_prune(pending, self.every, heldout, also)
            return
        arguments = (pending, self.every, tuple(heldout), tuple(also))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def _write(
        self,
        pending: checkpoint.Pending,
        every: EveryConfig,
        heldout: Sequence[tuple[int, float]],
        also: Collection[int],
    ) -> None:
        try:
            write_and_prune(pending, every, heldout, also)
        except BaseException as error:  # raised again where somebody hears it
            self._error = error

    def check(self) -> None:
        """Raise what went wrong in the background, if anything has."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when nothing is being written any more; raise what went wrong."""
        self.finish()
        self.check()

    def finish(self) -> None:
        """`wait` for a run that ends for another reason: what went wrong with the writing is not said."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def write_and_prune(
    pending: checkpoint.Pending,
    every: EveryConfig,
    heldout: Sequence[tuple[int, float]],
    also: Collection[int],
) -> None:
    folder = pending.final.parent
    checkpoint.write(pending, then=f"isoflop train --resume {folder.parent}")
    stay = wanted(checkpoint.steps(folder), every, heldout)
    checkpoint.prune(folder, every.keep, keep={*stay, *also})


def wanted(steps: Sequence[int], every: EveryConfig, heldout: Sequence[tuple[int, float]]) -> set[int]:
    """Which checkpoints stay besides the last ones: the best, and every n-th.

    The best is the one with the least held-out loss, a checkpoint's being the last measured up to its step; of several
    the first.
    """
    stay = {step for step in steps if every.keep_every and step % every.keep_every == 0}
    losses = {step: at for step in steps if (at := loss_at(step, heldout)) is not None}
    if every.keep_best and losses:
        stay.add(min(losses, key=lambda step: (losses[step], step)))
    return stay


def loss_at(step: int, heldout: Sequence[tuple[int, float]]) -> float | None:
    """The held-out loss last measured up to a step."""
    before = [(at, loss) for at, loss in heldout if at <= step and math.isfinite(loss)]
    return max(before)[1] if before else None
