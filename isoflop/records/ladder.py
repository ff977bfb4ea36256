"""What a ladder keeps: a line per run, and what a fitted law holds for."""

from dataclasses import dataclass

from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class LadderRun(Record):
    """A line of a ladder's runs.jsonl.

    Attributes:
        key: of all that decides the run.
        role: "rung", "rate" (another learning rate) or "repeat" (another seed).
        parameters: N of 6ND; tokens: read; flops: 6ND.
        length: tokens over those of the rung's shortest run, whose first part it shares.
        unique_tokens: that the text has.
        factor: the learning rates over those of the plan.
        bits_per_byte: on held-out text; None for a run that diverged.
        seconds: that it took, with what is around its steps; time: when it ended, in Unix seconds.
    """

    key: str | None = None
    role: str | None = None
    layers: int | None = None
    d_model: int | None = None
    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    steps: int | None = None
    length: int | None = None
    unique_tokens: int | None = None
    seed: int | None = None
    factor: float | None = None
    bits_per_byte: float | None = None
    diverged: bool = False
    seconds: float | None = None
    time: float | None = None


@dataclass(frozen=True, kw_only=True)
class LadderRung(Record):
    """A size of a ladder: its shape, tokens of its shortest run, and its lengths as multiples of that."""

    layers: int | None = None
    d_model: int | None = None
    parameters: int | None = None
    tokens: float | None = None
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LadderAbout(Record):
    """What the law of a ladder holds for.

    Attributes:
        text: a digest of the text before it is prepared; fingerprint: of the prepared data.
        corpus: names of the sources.
        recipe: a digest of the recipe; rates: learning rates over the plan's for the width; context: of the model.
        vocab_size, max_train_bytes: that the data were prepared with; ids: of the tokenizer.
        unique_tokens: that the text has; repeated: whether some run read it more than once.
        runs: that the law was fitted to; diverged: that are not among them.
        seed_noise: standard deviation of log bits per byte between seeds; None where it was not measured.
        drift: standard deviation of log bits per byte that is added for each factor of ten in compute beyond the
            largest run, where the best learning rate moves with the size; 0: it does not, or nothing shows it.
        smallest, largest: FLOPs of the runs.
        version, commit: of isoflop; time: Unix seconds; folder: of the ladder.
    """

    text: str | None = None
    fingerprint: str | None = None
    corpus: str | None = None
    recipe: str | None = None
    rates: dict[str, str] | None = None
    context: int | None = None
    vocab_size: int | None = None
    max_train_bytes: int | None = None
    ids: int | None = None
    unique_tokens: int | None = None
    repeated: bool = False
    runs: int | None = None
    diverged: int | None = None
    seed_noise: float | None = None
    drift: float | None = None
    smallest: float | None = None
    largest: float | None = None
    version: str | None = None
    commit: str | None = None
    time: float | None = None
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class LadderSeen(Record):
    """What plan.json keeps of the ladder that its forecast was made from, to draw it.

    Attributes:
        key: the name of the stored fit.
        runs: (FLOPs, bits per byte) of its runs.
        frontier: (FLOPs, bits per byte, low, high): the least loss at each compute, by the law, with the interval of
            one run.
    """

    key: str | None = None
    runs: tuple[tuple[float, ...], ...] | None = rare()
    frontier: tuple[tuple[float, ...], ...] | None = rare()
