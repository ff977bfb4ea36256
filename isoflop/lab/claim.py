"""A claim: one TOML file that states a question and the rule that decides it, before anything is run.

TOML and not Python: a claim is data, so that it can be hashed as it stands, sent to a colleague, and read without
running anybody's code; measures and procedures are entries of tables (procedures/table.py). The standard library reads
it.

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
from typing import Annotated, Any

from isoflop.config import convert, from_dict, nearest, to_dict
from isoflop.errors import UserError
from isoflop.lab import damage
from isoflop.lab.fields import COSTS_TO as COSTS_TO
from isoflop.lab.fields import LENGTHS as LENGTHS
from isoflop.lab.fields import MOST_PAIRS as MOST_PAIRS
from isoflop.lab.fields import MOST_RATES as MOST_RATES
from isoflop.lab.fields import Arm as Arm
from isoflop.lab.fields import Comparison as Comparison
from isoflop.lab.fields import Figure as Figure
from isoflop.lab.fields import Setup as Setup
from isoflop.lab.fields import entry_of
from isoflop.lab.procedures.across import ON
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.untrusted import read_text

CLAIMS = Path(__file__).resolve().parent / "claims"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# fields that do not decide a claim's own result, and are not in its hash
WORDS = ("name", "number", "notes", "literature", "figure", "sizes", "size")
# fields of arms and comparisons that are in the hash only if they are set
LATER = ("sources", "law", "beyond", "aside")
FULL = "full"  # the name of the largest size


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
    sizes: Annotated[
        dict[str, Any],
        "further sizes that --full runs before the one of [full], by name, each as [full]; `arms` in one, as in "
        "[sizes.full.arms], has assignments by arm",
    ] = field(default_factory=dict)
    size: Annotated[str, "which of the further sizes it is; empty: the claim's own"] = ""

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
        if all(comparison.aside for comparison in self.comparisons):
            raise UserError("all comparisons are aside = true: at least one has to decide the verdict")
        for comparison in self.comparisons:
            self.check(comparison)

    def check(self, comparison: Comparison) -> None:
        """Raises UserError for a comparison of an arm or a measure that is not there."""
        roles = [("arm", comparison.arm, comparison.measure)]
        if comparison.against:
            roles.append(("against", comparison.against, comparison.other or comparison.measure))
        roles += [("law", name, comparison.measure) for name in comparison.law]
        roles += [("beyond", name, comparison.measure) for name in comparison.beyond]
        for role, name, measure in roles:
            if name not in self.arms:
                known = ", ".join(self.arms)
                raise UserError(f"{role} = {name!r} is not one of the arms {known}{nearest(name, self.arms)}")
            measures = self.measures(name)
            if measure not in (*measures, *COSTS_TO):
                raise UserError(
                    f"measure = {measure!r} is not one of {', '.join(measures)}{nearest(measure, measures)}"
                )

    def measures(self, arm: str) -> tuple[str, ...]:
        """The names of what an arm's procedure measures."""
        entry = entry_of(self.procedure(arm), f"arms.{arm}.procedure")
        on_each = tuple(f"{ON}{name}" for name in self.needs) if self.procedure(arm) == "across" else ()
        return (*entry.measures, *on_each)

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the sources that the user has to give, those that arms train on."""
        return tuple(dict.fromkeys(name for arm in self.arms.values() for name in arm.sources))

    @property
    def open_ended(self) -> bool:
        """Whether further pairs could be drawn: not where each stands for a published case."""
        return not any(entry_of(self.procedure(arm), "procedure").cases for arm in self.arms)

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
        """SHA-256 of everything that decides the result, as hexadecimal digits. Words are left out, so that a typo in a
        note can be corrected; so are the most pairs and the budget, since an undecided claim is continued with more of
        both, and its earlier looks count (verdict.decide)."""
        told = {key: value for key, value in to_dict(self).items() if key not in WORDS}
        for one in (*told["arms"].values(), *told["comparisons"]):
            del one["words"]
            for name in LATER:
                if not one.get(name):
                    one.pop(name, None)
        told["setup"] = {key: value for key, value in told["setup"].items() if key not in ("pairs", "minutes")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def as_full(self) -> "Claim":
        """The claim at the largest size that `--full` runs, under a name of its own.

        Raises:
            UserError: if it says nothing about that.
        """
        if not self.full:
            raise UserError(f"{self.name} has no [full] section, so that it has one size only: run it without --full")
        return self.at_size(FULL)

    def at_size(self, size: str) -> "Claim":
        """The claim at a further size, under a name of its own."""
        table = {**(self.full if size == FULL else {}), **self.sizes.get(size, {})}
        sets = table.pop("arms", {})
        if not isinstance(sets, dict):
            raise UserError(f"sizes.{size}.arms is not a table of assignments by arm")
        for name in sets:
            if name not in self.arms:
                raise UserError(f"sizes.{size}.arms.{name}: there is no such arm{nearest(name, self.arms)}")
        added = {name: convert(tuple[str, ...], given, f"sizes.{size}.arms.{name}") for name, given in sets.items()}
        arms = {name: replace(arm, set=(*arm.set, *added.get(name, ()))) for name, arm in self.arms.items()}
        setup = from_dict(Setup, {**to_dict(self.setup), **table}, FULL if size == FULL else f"sizes.{size}")
        return replace(self, setup=setup, arms=arms, full={}, sizes={}, size=size, name=f"{self.name}-{size}")

    def all_sizes(self) -> list["Claim"]:
        """The claim at all its sizes, the smallest first: itself, those of [sizes] in their order, that of [full]."""
        further = [self.at_size(size) for size in self.sizes if size != FULL]
        return [self, *further, *([self.at_size(FULL)] if self.full else [])]

    @property
    def own_name(self) -> str:
        """The name of the claim at its own size."""
        return self.name.removesuffix(f"-{self.size or FULL}")

    @property
    def reads(self) -> bool:
        return any(PROCEDURES[self.procedure(arm)].reads for arm in self.arms)

    def with_sources(self, sources: tuple[str, ...]) -> "Claim":
        """The claim on other sources than its own, if there are any.

        Raises:
            UserError: for sources that it would not read.
        """
        if not sources:
            return self
        if not self.reads:
            raise UserError(f"the claim {self.name} reads no text: leave {' '.join(sources)} out")
        unread = [text for name, text in damage.named(sources).items() if self.needs and name not in self.needs]
        if unread:
            raise UserError(
                f"the claim {self.name} reads {', '.join(self.needs)} alone, by these names: leave {' '.join(unread)} "
                f"out, or name it as in {self.needs[0]}=FILE"
            )
        return replace(self, setup=replace(self.setup, sources=sources))

    def same_but_for_text(self, other: "Claim") -> bool:
        """Whether another claim is this one, on whatever sources."""
        return replace(self, setup=replace(self.setup, sources=other.setup.sources)).hash == other.hash


def read_claim(named: str) -> Claim:
    """A claim by the name of one that isoflop has, or by the path of a file.

    Raises:
        UserError: if there is none, or for what is wrong in it: file, field, value.
    """
    path = CLAIMS / f"{named}.toml" if NAME.fullmatch(named) else Path(named)
    if not path.exists():
        raise UserError(
            f"claim {named!r} is neither a file nor one of `isoflop lab list`, and `isoflop lab new NAME` writes one "
            f"to fill in{nearest(named, names())}"
        )
    try:
        written = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    claim = claim_of(written, path.stem, str(path))
    if path.resolve().parent != CLAIMS:
        for sized in claim.all_sizes():
            check_own_name(sized.name, str(path))
    return claim


def check_own_name(name: str, origin: str) -> None:
    """Raises:
    UserError: if a claim of the user's own has the name of one that isoflop has, at any size: it would take that one's
        place in the lab's folder and in its lists.
    """
    if name in {sized.name for claim in all_claims() for sized in claim.all_sizes()}:
        raise UserError(f"{origin}: isoflop has a claim {name!r} itself; name yours otherwise, as in my-{name}")


def claim_of(written: Mapping[str, Any], name: str, origin: str) -> Claim:
    """A claim from what a file holds.

    Raises:
        UserError: naming the file and the field.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{origin}: a claim's file is named with letters, digits, _ and - only, as in my-claim.toml")
    known = {one.name for one in fields(Claim)} - {"name", "size"}
    for key in written:
        if key not in known:
            raise UserError(
                f"{origin}: unknown field {key}{nearest(key, known)}; a claim has {', '.join(sorted(known))}"
            )
    try:
        claim = from_dict(Claim, {**written, "name": name})
        claim.all_sizes()
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
