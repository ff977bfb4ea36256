"""A claim: one TOML file that says what is to be found out, and by which rule, before anything is run.

TOML and not Python: a claim is data, so that it can be hashed as it stands, sent to a colleague, and read without
running anybody's code; what is measured is named by entries of tables (procedures/table.py). The standard library
reads it.

    statement = "as people say it"
    question = "made testable"
    prediction = "what is expected, in words"
    literature = ["where it comes from"]

    [setup]                             what all arms share; see Setup
    set = ["model.layers=3"]
    tokens = 1e6
    equal = ["parameters", "flops"]
    rates = [0.5, 1, 2]

    [arms.plain]                        an arm is the base with what it sets; see Arm
    [arms.linear]
    set = ["model.feed_forward=linear"]

    [[comparisons]]                     all of them have to hold; see Comparison
    measure = "bits_per_byte"
    arm = "linear"
    against = "plain"
    expect = "higher"
    smallest = 0.03
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from isoflop.config import from_dict, nearest, to_dict
from isoflop.errors import UserError
from isoflop.lab import damage
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.untrusted import read_text

CLAIMS = Path(__file__).parent / "claims"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
LENGTHS = ("tokens", "flops", "seconds")  # of which one is held equal by the length of an arm's runs
EQUAL = (*LENGTHS, "parameters")
MOST_RATES, MOST_PAIRS = 5, 1000
WORDS = ("name", "number", "notes", "literature", "figure")  # fields of a claim that decide nothing
COSTS_TO = ("tokens_to", "flops_to", "seconds_to")  # measures that are read off a run's curve, as log2 of the cost


@dataclass(frozen=True)
class Setup:
    """What all arms share.

    Raises:
        UserError: naming the field.
    """

    procedure: Annotated[str, "what is done with each arm and seed: an entry of procedures/table.py"] = "train"
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
    procedure: Annotated[str, "another one than the setup's"] = ""
    options: Annotated[dict[str, Any], "of the procedure, on top of the setup's"] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """One prediction, with the rule that decides it.

    The differences arm - against, pair by pair, have a mean with a 1 - alpha interval. The verdict is `equivalent` if
    the mean lies within the margin (two one-sided tests), else `supported` or `refuted` if the t-test rejects on the
    expected or on the other side, else `undecided`. Where `same` is expected, equivalence supports and a difference
    refutes. Measures that a run can fail to have (infinite: it diverged, it never reached the target) are compared by
    sign test and median.

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
    words: Annotated[str, "the prediction as a sentence"] = ""

    def __post_init__(self) -> None:
        where = f"the comparison of {self.measure}"
        if not self.smallest > 0 or self.margin < 0:
            raise UserError(f"{where}: smallest = {self.smallest:g}, margin = {self.margin:g}: effects are above 0")
        if self.measure in COSTS_TO and not self.target > 0:
            raise UserError(f"{where} needs target, the held-out bits per byte to be reached")

    @property
    def zone(self) -> float:
        """Half the width of what counts as no difference."""
        return self.margin or self.smallest

    @property
    def sentence(self) -> str:
        against = self.against or f"{self.value:g}"
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


@dataclass(frozen=True)
class Claim:
    """A statement, and how it is put to the test."""

    statement: Annotated[str, "the sentence as people say it"]
    question: Annotated[str, "what is found out"]
    prediction: Annotated[str, "what is expected, in words"]
    comparisons: tuple[Comparison, ...]
    name: str = ""
    number: Annotated[int, "its place in lists; 0: after those that have one"] = 0
    setup: Setup = field(default_factory=Setup)
    arms: dict[str, Any] = field(default_factory=dict)
    literature: tuple[str, ...] = ()
    notes: Annotated[str, "what the page says about how far the result goes"] = ""
    figure: Figure = field(default_factory=Figure)
    full: Annotated[dict[str, Any], "what --full has in place of the setup's fields"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.arms:
            raise UserError("a claim needs arms: [arms.NAME] with what each sets")
        for name in self.arms:
            if not NAME.fullmatch(name):
                raise UserError(f"[arms.{name}]: a name has letters, digits, _ and - only")
        object.__setattr__(self, "arms", {name: from_dict(Arm, arm, f"arms.{name}") for name, arm in self.arms.items()})
        for name, arm in self.arms.items():
            damage.check(arm.damage, name)
            if not 0 < arm.times <= 1e6:
                raise UserError(f"arms.{name}.times = {arm.times:g} is not above 0 and at most a million")
        if not self.comparisons:
            raise UserError("a claim needs at least one [[comparisons]]: what is predicted, and when it counts")
        for comparison in self.comparisons:
            self.check(comparison)

    def check(self, comparison: Comparison) -> None:
        """Raises UserError for a comparison of an arm or a measure that is not there."""
        for role in ("arm", "against"):
            name = getattr(comparison, role)
            if name not in self.arms and not (role == "against" and not name):
                known = ", ".join(self.arms)
                raise UserError(f"{role} = {name!r} is not one of the arms {known}{nearest(name, self.arms)}")
            if name:
                measure = (comparison.other if role == "against" else "") or comparison.measure
                known_measures = entry_of(self.procedure(name), f"arms.{name}.procedure").measures
                if measure not in (*known_measures, *COSTS_TO):
                    raise UserError(
                        f"measure = {measure!r} is not one of {', '.join(known_measures)}"
                        f"{nearest(measure, known_measures)}"
                    )

    def procedure(self, arm: str) -> str:
        """What is done with an arm."""
        return str(self.arms[arm].procedure or self.setup.procedure)

    def options(self, arm: str) -> dict[str, Any]:
        return {**self.setup.options, **self.arms[arm].options}

    def words(self, arm: str) -> str:
        return str(self.arms[arm].words or arm)

    @property
    def trains(self) -> bool:
        return any(PROCEDURES[self.procedure(arm)].trains for arm in self.arms)

    @property
    def hash(self) -> str:
        """SHA-256 of all that decides the result, as hexadecimal digits. Words that decide nothing are left out: a typo
        in a note can be mended. So is how many pairs there may be and how long it may take, since a claim that
        stayed open goes on with more of both, and what was looked at before counts (verdict.decide)."""
        told = {key: value for key, value in to_dict(self).items() if key not in WORDS}
        for one in (*told["arms"].values(), *told["comparisons"]):
            del one["words"]
        told["setup"] = {key: value for key, value in told["setup"].items() if key not in ("pairs", "minutes")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def as_full(self) -> "Claim":
        """The claim as `--full` runs it, under a name of its own.

        Raises:
            UserError: if it says nothing about that.
        """
        if not self.full:
            raise UserError(f"{self.name} has no [full] section: it is run as it is, without --full")
        setup = from_dict(Setup, {**to_dict(self.setup), **self.full}, "full")
        return replace(self, setup=setup, full={}, name=f"{self.name}-full")

    def with_sources(self, sources: tuple[str, ...]) -> "Claim":
        return replace(self, setup=replace(self.setup, sources=sources)) if sources else self


def entry_of(name: str, where: str) -> Any:
    if name not in PROCEDURES:
        raise UserError(f"{where} = {name!r} is not one of {', '.join(PROCEDURES)}{nearest(name, PROCEDURES)}")
    return PROCEDURES[name]


def read_claim(named: str) -> Claim:
    """A claim by the name of one that isoflop has, or by the path of a file.

    Raises:
        UserError: if there is none, or for what is wrong in it: file, field, value.
    """
    path = CLAIMS / f"{named}.toml" if NAME.fullmatch(named) else Path(named)
    if not path.exists():
        known = names()
        raise UserError(
            f"claim {named!r} is neither a file nor one of {', '.join(known)}{nearest(named, known)}; "
            "`isoflop lab new NAME` writes one to fill in"
        )
    try:
        written = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    return claim_of(written, path.stem, str(path))


def claim_of(written: Mapping[str, Any], name: str, origin: str) -> Claim:
    """A claim from what a file holds.

    Raises:
        UserError: naming the file and the field.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{origin}: a claim's file is named with letters, digits, _ and - only, as in my-claim.toml")
    known = {one.name for one in fields(Claim)} - {"name"}
    for key in written:
        if key not in known:
            raise UserError(
                f"{origin}: unknown field {key}{nearest(key, known)}; a claim has {', '.join(sorted(known))}"
            )
    try:
        claim = from_dict(Claim, {**written, "name": name})
        if claim.full:
            claim.as_full()
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return claim


def names() -> list[str]:
    """The claims that isoflop has, by name."""
    return sorted(path.stem for path in CLAIMS.glob("*.toml"))


def all_claims() -> list[Claim]:
    """The claims that isoflop has, in the order of their numbers."""
    return sorted(
        (read_claim(name) for name in names()), key=lambda claim: (not claim.number, claim.number, claim.name)
    )
