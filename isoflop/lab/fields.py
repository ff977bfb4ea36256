"""The parts of a claim: what its arms share, the arms, the predictions, the figure. Their annotations are the help."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from isoflop.config import nearest
from isoflop.errors import UserError
from isoflop.lab.procedures.table import PROCEDURES

LENGTHS = ("tokens", "flops", "seconds")  # of which one is held equal by the length of an arm's runs
EQUAL = (*LENGTHS, "parameters")
MOST_RATES, MOST_PAIRS = 5, 1000
COSTS_TO = ("tokens_to", "flops_to", "seconds_to")  # measures that are read off a run's curve, as log2 of the cost


@dataclass(frozen=True)
class Setup:
    """What all arms share.

    Raises:
        UserError: naming the field.
    """

    procedure: Annotated[str, "what is run for each arm and seed: an entry of procedures/table.py"] = "train"
    base: Annotated[
        dict[str, Any], "a whole configuration, as in a run's config.json, in place of the lab's small one"
    ] = field(default_factory=dict)
    set: Annotated[tuple[str, ...], "assignments to the run's configuration, as for `isoflop train --set`"] = ()
    sources: Annotated[tuple[str, ...], "text or pairs; none: the default corpus"] = ()
    tokens: Annotated[float, "that a run of the first arm reads"] = 0.0
    equal: Annotated[tuple[str, ...], "what is held equal across arms: tokens, flops or seconds; and parameters"] = ()
    rates: Annotated[
        tuple[float, ...],
        "factors of the planned learning rates that are tried first, next to one another; up to five are tried until "
        "the best lies between two others; none: rates are not tuned",
    ] = ()
    pairs: Annotated[int, "the most pairs of runs, one per seed"] = 12
    alpha: Annotated[float, "chance of a wrong verdict"] = 0.05
    power: Annotated[float, "chance to find the smallest interesting effect"] = 0.8
    rule: Annotated[
        Literal["fixed", "anytime"],
        "fixed: one look, at the planned number of pairs; anytime: a look after every pair",
    ] = "fixed"
    minutes: Annotated[float, "the budget, where the command names none"] = 30.0
    options: Annotated[dict[str, Any], "of the procedure"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entry_of(self.procedure, "setup.procedure")
        for name in self.equal:
            if name not in EQUAL:
                raise UserError(f"setup.equal = {name!r} is not one of {', '.join(EQUAL)}{nearest(name, EQUAL)}")
        if sum(name in LENGTHS for name in self.equal) > 1:
            raise UserError(
                f"setup.equal = {list(self.equal)} holds two lengths equal; runs can have one of {', '.join(LENGTHS)}"
            )
        if len(self.rates) not in (0, 1, 3, 5) or any(not rate > 0 for rate in self.rates):
            raise UserError(f"setup.rates = {list(self.rates)} are not one, three or five positive factors")
        if list(self.rates) != sorted(dict.fromkeys(self.rates)):
            raise UserError(f"setup.rates = {list(self.rates)} do not rise")
        for name, low, high in (("alpha", 0.0, 0.5), ("power", 0.0, 1.0)):
            if not low < getattr(self, name) < high:
                raise UserError(f"setup.{name} = {getattr(self, name)} is not between {low:g} and {high:g}")
        if not 2 <= self.pairs <= MOST_PAIRS:
            raise UserError(f"setup.pairs = {self.pairs} is not between 2 and {MOST_PAIRS}")
        if not self.minutes > 0:
            raise UserError(f"setup.minutes = {self.minutes} is not above 0")
        if self.trains and not self.tokens > 0:
            raise UserError("setup.tokens is missing: say how many tokens a run of the first arm reads, as in 1e6")

    @property
    def trains(self) -> bool:
        return PROCEDURES[self.procedure].trains

    @property
    def length(self) -> str:
        """What the length of a run holds equal."""
        return next((name for name in self.equal if name in LENGTHS), "tokens")


@dataclass(frozen=True)
class Arm:
    """One way of doing it: the base with what it sets."""

    set: Annotated[tuple[str, ...], "assignments on top of the setup's"] = ()
    words: Annotated[str, "what the report calls it; its name if empty"] = ""
    match: Annotated[str, "a whole-number field, such as model.d_model, set so that parameters are the first arm's"] = (
        ""
    )
    times: Annotated[
        float, "of the length that is held equal: an arm with more compute, where that is the question"
    ] = 1.0
    again: Annotated[bool, "first weights of another seed than the other arms': for an A/A test"] = False
    damage: Annotated[dict[str, Any], "what is done to the text: shares of documents by kind, see damage.py"] = field(
        default_factory=dict
    )
    sources: Annotated[
        tuple[str, ...], "names of the sources that it trains on; a part of each source that any arm names is held out"
    ] = ()
    procedure: Annotated[str, "another one than the setup's"] = ""
    options: Annotated[dict[str, Any], "of the procedure, on top of the setup's"] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One prediction, with the rule that decides it.

    The differences arm - against, pair by pair, have a mean with a 1 - alpha interval. The verdict is `equivalent` if
    the mean lies within the margin (two one-sided tests), else `supported` or `refuted` if the t-test rejects on the
    expected or on the other side, else `undecided`. Where `same` is expected, equivalence supports and a difference
    refutes. So `supported` says that the difference is there, on the expected side, and that it was not shown to be
    too small to matter: with few pairs that is often left open, and more can turn it into `equivalent`.

    A run that diverged has an infinite loss, one that never reached the target an infinite cost; such differences are
    compared by sign test and median. Pairs of two such runs say nothing about the difference, so that with one of
    them no equivalence is shown. Of measures that are no losses a diverged run has none: the pair is left out, and
    the comparison stays undecided.

    Two comparisons are of more than two arms. With `law` the arm is compared with a prediction: that of the power law
    L = a C^-b through the named arms of the same pair, at the arm's own FLOPs. With `beyond` the difference arm -
    against is compared with that between two other arms: an interaction.

    Raises:
        UserError: naming the field.
    """

    measure: Annotated[str, "a name that the procedure measures, or tokens_to, flops_to, seconds_to a target"]
    arm: Annotated[str, "the arm that is asked about"]
    expect: Annotated[Literal["higher", "lower", "same"], "the prediction of arm - against"]
    smallest: Annotated[float, "the smallest effect worth knowing, in the measure's unit"]
    against: Annotated[str, "the arm it is compared with; empty: with `value`"] = ""
    value: Annotated[float, "a number to compare with"] = 0.0
    other: Annotated[str, "a measure of `against` to compare with, where it is not the same one"] = ""
    margin: Annotated[float, "differences within it are none; 0: `smallest`"] = 0.0
    target: Annotated[float, "held-out bits per byte to be reached, for tokens_to and its kind"] = 0.0
    law: Annotated[tuple[str, ...], "arms through which a power law in FLOPs is fitted, in place of `against`"] = ()
    beyond: Annotated[tuple[str, ...], "two arms whose difference is subtracted from that of arm and against"] = ()
    aside: Annotated[bool, "it is told, but the statement does not depend on it: it does not decide the verdict"] = (
        False
    )
    words: Annotated[str, "the prediction as a sentence"] = ""

    def __post_init__(self) -> None:
        where = f"the comparison of {self.measure}"
        if not self.smallest > 0 or self.margin < 0:
            raise UserError(f"{where}: smallest = {self.smallest:g}, margin = {self.margin:g}: effects are above 0")
        if self.measure in COSTS_TO and not self.target > 0:
            raise UserError(f"{where} needs target, the held-out bits per byte to be reached")
        if self.law and (len(self.law) < 2 or self.against or self.measure in COSTS_TO):
            raise UserError(
                f"{where}: law = {list(self.law)} needs two arms or more, no `against`, and a measure of the runs"
            )
        if self.beyond and (len(self.beyond) != 2 or not self.against):
            raise UserError(f"{where}: beyond = {list(self.beyond)} needs two arms, and `against`")

    @property
    def zone(self) -> float:
        """Half the width of what counts as no difference."""
        return self.margin or self.smallest

    @property
    def spread(self) -> float:
        """Of its differences from pair to pair, in that of two runs: an interaction has those of two pairs of arms."""
        return math.sqrt(2) if self.beyond else 1.0

    @property
    def fixed(self) -> bool:
        """Whether an arm's measure is compared with a number, and not with another run."""
        return not self.against and not self.law

    @property
    def sentence(self) -> str:
        law = f"a power law through {' and '.join(self.law)}" if self.law else ""
        against = law or self.against or f"{self.value:g}"
        relation = {"higher": "higher than", "lower": "lower than", "same": "as"}[self.expect]
        return self.words or f"{self.measure} of {self.arm} is {relation} {self.other or ''} {against}".replace(
            "  ", " "
        )


@dataclass(frozen=True)
class Figure:
    """What the page draws: two lists that a run has, the mean of y over seeds by arm; none: the held-out curves."""

    x: str = ""
    y: str = ""
    x_words: str = ""
    y_words: str = ""
    log: bool = False


def entry_of(name: str, where: str) -> Any:
    if name not in PROCEDURES:
        raise UserError(f"{where} = {name!r} is not one of {', '.join(PROCEDURES)}{nearest(name, PROCEDURES)}")
    return PROCEDURES[name]
