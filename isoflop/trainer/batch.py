"""What each optimiser step reads. Its batch and its context may grow during the run, and the learning rates with the
batch; the size of a step is a pure function of its number, of the fields below and of the planned number of steps.
"""

import bisect
import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from isoflop.config import Added, OneOf
from isoflop.errors import UserError

MOST_SEQUENCES = 10**6  # in a step; GPT-3's largest batches had 1,600


@dataclass(frozen=True)
class Rates:
    """How the learning rates of a smaller step of a ramp follow from those of a whole step.

    Attributes:
        exponent: the rates are multiplied by the step's share of batch.sequences to this power.
    """

    words: str
    exponent: float


RATES: dict[str, Rates] = {
    "same": Rates("as in a whole step", 0.0),
    # The rule for Adam (Malladi et al. 2022, 2205.10287, definition 4.1); Muon's rates follow it here too.
    "sqrt": Rates("times the square root of its share of batch.sequences", 0.5),
}

TEXT_ONLY = (
    "ramp_from",
    "ramp_sequences",
    "ramp_share",
    "rates",
    "context_from",
    "context_share",
    "windows",
    "document_mask",
)


@dataclass(frozen=True)
class BatchConfig:
    """The sequences of one optimiser step, and of one forward and backward pass (gradient accumulation).

    With a ramp, the first steps have `ramp_from` sequences, later ones 2, 3, ... times as many, each for an equal share
    of the ramp: linear in the sequences read, as in GPT-3 (2005.14165, appendix B).

    With a growing context, the first steps cut each sequence into windows of `context_from` tokens, later ones into
    windows of 2, 4, ... times as many, each for an equal share of `context_share`. The tokens of a step stay the same.
    Held-out text is measured at the model's context all along.

    Raises:
        UserError: naming the field, for a value that is inconsistent with the others.
    """

    sequences: Annotated[int, "sequences of model.context tokens, or pairs, in one optimiser step"] = 32
    micro_sequences: Annotated[
        int, "sequences in one forward and backward pass of a process (gradient accumulation); 0: all of its part"
    ] = 0
    ramp_from: Annotated[int, "sequences in each of the first steps, from which the batch grows; 0: no ramp"] = 0
    ramp_sequences: Annotated[int, "sequences read by the time the batch has grown to batch.sequences"] = 0
    ramp_share: Annotated[
        float, "the same as a share of the planned tokens, instead of batch.ramp_sequences: 0.3 of the run", Added()
    ] = 0.0
    rates: Annotated[
        str,
        "learning rates of a smaller step of a ramp:",
        OneOf(RATES),
        Added(),
    ] = "same"
    context_from: Annotated[
        int,
        "tokens of context in the first steps, which doubles up to model.context at the same tokens per step; "
        "0: model.context from the start",
        Added(),
    ] = 0
    context_share: Annotated[
        float, "share of the planned tokens by which the context has grown to model.context", Added()
    ] = 0.0
    windows: Annotated[
        Literal["running", "documents"],
        "of training and held-out text: running, one after the other through all documents; documents, each begins "
        "with a document, or where a longer one was cut, and with the id in front of a document",
        Added(),
    ] = "running"
    document_mask: Annotated[
        bool, "no attention to tokens of other documents in the window; positions continue across documents", Added()
    ] = False

    def __post_init__(self) -> None:
        if not 1 <= self.sequences <= MOST_SEQUENCES:
            raise UserError(f"batch.sequences = {self.sequences} is not between 1 and {MOST_SEQUENCES:,}")
        OneOf(RATES).check(self.rates, "batch.rates")
        self.check_micro("sequences")
        for name in ("ramp_share", "context_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"batch.{name} = {getattr(self, name):g} is not between 0 and 1; 0.3 is 30 % of a run")
        self.check_ramp()
        if self.ramp_from:
            self.check_micro("ramp_from")
        if self.context_from < 0 or bool(self.context_from) != bool(self.context_share):
            raise UserError(
                f"batch.context_from = {self.context_from} and batch.context_share = {self.context_share:g}: a context "
                "that grows needs both above 0"
            )

    def check_micro(self, name: str) -> None:
        """Check that the sequences of a pass divide the field `name`."""
        micro, whole = self.micro_sequences, getattr(self, name)
        if micro < 0:
            raise UserError(f"batch.micro_sequences = {micro} is negative; 0 is a whole step in one pass")
        if micro and whole % micro:
            divisor = next(n for n in range(min(micro, whole), 0, -1) if whole % n == 0)
            raise UserError(f"batch.micro_sequences = {micro} does not divide batch.{name} = {whole}; use {divisor}")

    def check_ramp(self) -> None:
        """Check the fields of the ramp."""
        for name in ("ramp_from", "ramp_sequences"):
            if getattr(self, name) < 0:
                raise UserError(f"batch.{name} = {getattr(self, name)} is negative; 0 is no ramp")
        if self.ramp_from and self.sequences % self.ramp_from:
            nearest = max(1, round(self.sequences / self.ramp_from)) * self.ramp_from
            raise UserError(
                f"batch.ramp_from = {self.ramp_from} does not divide batch.sequences = {self.sequences}; use --set "
                f"batch.sequences={nearest}"
            )
        if self.ramp_sequences and self.ramp_share:
            raise UserError(
                f"batch.ramp_sequences = {self.ramp_sequences} and batch.ramp_share = {self.ramp_share:g} both say how "
                "long the batch grows; set one of them to 0"
            )
        length = f"batch.ramp_share = {self.ramp_share:g}" if self.ramp_share else ""
        length = length or f"batch.ramp_sequences = {self.ramp_sequences}"
        if bool(self.ramp_from) != bool(self.ramp_sequences or self.ramp_share):
            raise UserError(
                f"batch.ramp_from = {self.ramp_from} and {length}: a ramp needs both above 0; its length may be either "
                "batch.ramp_share or batch.ramp_sequences"
            )

    def refuse_pairs(self) -> None:
        """Raise UserError if a field is set that applies to text only."""
        set_ = [name for name in TEXT_ONLY if getattr(self, name) != getattr(BatchConfig, name)]
        if set_:
            names = " and ".join(f"batch.{name}" for name in set_)
            raise UserError(
                f"batch.{set_[0]} = {getattr(self, set_[0])} is for text and not for pairs; leave out {names}"
            )

    @property
    def micro(self) -> int:
        """Sequences in one pass, with 0 resolved."""
        return self.micro_sequences or self.sequences

    @property
    def grows(self) -> bool:
        """Whether steps differ in their sequences or their context."""
        return bool(self.ramp_from or self.context_from)

    def alike(self, sequences: int, micro: int = 0) -> "BatchConfig":
        """Steps that are all alike, of so many sequences: the same in everything else."""
        return replace(
            self,
            sequences=sequences,
            micro_sequences=micro,
            ramp_from=0,
            ramp_sequences=0,
            ramp_share=0.0,
            context_from=0,
            context_share=0.0,
        )

    def for_sequences(self, sequences: float) -> "BatchConfig":
        """The same with the ramp's length in sequences, for a run that reads so many."""
        if not self.ramp_share:
            return self
        return replace(self, ramp_share=0.0, ramp_sequences=max(1, round(self.ramp_share * sequences)))

    def for_steps(self, steps: int) -> "BatchConfig":
        """The same with the ramp's length in sequences, for a run of so many planned steps."""
        stages = self.sequences // self.ramp_from - 1 if self.ramp_share else 0
        if not stages:
            return self.for_sequences(1)
        sizes = range(self.ramp_from, self.sequences, self.ramp_from)
        growing = self.ramp_share / stages * math.fsum(1 / size for size in sizes)
        return self.for_sequences(steps / (growing + (1 - self.ramp_share) / self.sequences))

    def sizes(self, context: int, steps: int) -> "Sizes":
        """The sizes of the steps of a run.

        Args:
            context: the model's.
            steps: planned, of which `ramp_share` and `context_share` are shares; a later move of the end changes
                nothing.

        Raises:
            UserError: if doubling `context_from` does not give the model's context.
        """
        sizes = Sizes(levels_of(self.for_steps(steps)), ((0, context),), RATES[self.rates].exponent)
        if not self.context_from or self.context_from == context:
            return sizes

        doublings = (context // self.context_from).bit_length() - 1
        if self.context_from << max(doublings, 0) != context:
            powers = [context >> n for n in (1, 2, 3) if context % (1 << n) == 0]
            longer = next(self.context_from << n for n in range(64) if self.context_from << n >= context)
            instead = f"use one of {', '.join(map(str, powers))}" if powers else f"use --set model.context={longer}"
            raise UserError(
                f"batch.context_from = {self.context_from} does not become model.context = {context} by doubling; "
                f"{instead}"
            )
        share = self.context_share * sizes.before(steps)
        stages: dict[int, int] = {}  # by first step; a stage without steps is left out
        for stage in range(doublings + 1):
            stages[sizes.steps_for(share * stage / doublings)] = self.context_from << stage
        return replace(sizes, stages=tuple(stages.items()))

    def steps_for(self, sequences: float) -> int:
        """The fewest steps that read at least `sequences` sequences, of which `ramp_share` is a share."""
        return Sizes(levels_of(self.for_sequences(sequences))).steps_for(sequences)


@dataclass(frozen=True)
class Sizes:
    """The sizes of all steps of a run, planned ones and later ones.

    A sequence is a window of the model's context; with a shorter context it is cut into several windows.

    Attributes:
        levels: (first step, sequences read before it, sequences of each step from it on), in order.
        stages: (first step, tokens of context from it on), in order.
        exponent: see Rates.
    """

    levels: tuple[tuple[int, int, int], ...]
    stages: tuple[tuple[int, int], ...] = ((0, 1),)
    exponent: float = 0.0

    def before(self, step: int) -> int:
        """Sequences read before step `step` (from 0)."""
        first, sequences_read, size = self.level(step)
        return sequences_read + (step - first) * size

    def at(self, step: int) -> int:
        """Sequences that step `step` (from 0) reads."""
        return self.level(step)[2]

    def level(self, step: int) -> tuple[int, int, int]:
        """The entry of `levels` that step `step` belongs to."""
        return self.levels[bisect.bisect_right(self.levels, step, key=lambda level: level[0]) - 1]

    def context(self, step: int) -> int:
        """Tokens of context of step `step` (from 0)."""
        return self.stages[bisect.bisect_right(self.stages, step, key=lambda stage: stage[0]) - 1][1]

    def windows_per_sequence(self, step: int) -> int:
        """Into how many windows step `step` cuts each sequence."""
        return self.stages[-1][1] // self.context(step)

    def rates(self, step: int) -> float:
        """The factor on the learning rates of step `step` because of its batch."""
        return (self.at(step) / self.levels[-1][2]) ** self.exponent

    def steps_for(self, sequences: float) -> int:
        """The fewest steps that read at least `sequences` sequences."""
        index = bisect.bisect_right(self.levels, max(sequences, 0), key=lambda level: level[1]) - 1
        first, sequences_read, size = self.levels[index]
        return first + math.ceil((sequences - sequences_read) / size)

    def since(self, step: int) -> int:
        """The first step with the size and the context of step `step`."""
        stage = bisect.bisect_right(self.stages, step, key=lambda stage: stage[0]) - 1
        return max(self.level(step)[0], self.stages[stage][0])

    def work(self, step: int) -> int:
        """The sum of sequences times context over the steps before `step`. No step of the rest of the run takes longer
        per unit of it than an earlier one: a step's time has a part that does not depend on its size, one that grows
        with the tokens and one, of attention, with tokens times context."""
        total = 0
        for number, (first, context) in enumerate(self.stages):
            end = self.stages[number + 1][0] if number + 1 < len(self.stages) else step
            if step > first:
                total += context * (self.before(min(end, step)) - self.before(first))
        return total

    def shares(self, steps: int) -> dict[tuple[int, int], float]:
        """The share of the first `steps` steps that has each (sequences, context), in the order of the run."""
        starts = sorted({level[0] for level in self.levels} | {stage[0] for stage in self.stages})
        found: dict[tuple[int, int], float] = {}
        for first, end in zip(starts, [*starts[1:], steps], strict=True):
            if (count := min(end, steps) - first) > 0:
                found[self.at(first), self.context(first)] = count / steps
        return found


def levels_of(batch: BatchConfig) -> tuple[tuple[int, int, int], ...]:
    """`Sizes.levels` of a batch whose ramp is given in sequences."""
    levels, step, sequences_read = [], 0, 0
    stages = batch.sequences // batch.ramp_from - 1 if batch.ramp_from else 0
    for stage in range(1, stages + 1):
        size = stage * batch.ramp_from
        levels.append((step, sequences_read, size))
        stage_steps = max(1, -(-(batch.ramp_sequences * stage - sequences_read * stages) // (size * stages)))
        step, sequences_read = step + stage_steps, sequences_read + stage_steps * size
    return (*levels, (step, sequences_read, batch.sequences))
