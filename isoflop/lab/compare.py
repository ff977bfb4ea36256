"""A comparison of the user's own, from the command line: a base, arms that each change something, what is equal."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from isoflop.config import nearest, to_key
from isoflop.errors import UserError, quoted
from isoflop.lab import arms as making
from isoflop.lab.arms import OVERHEAD, timed
from isoflop.lab.claim import LENGTHS, NAME, Arm, Claim, Comparison, Setup, check_own_name
from isoflop.lab.store import Store
from isoflop.model.config import ModelConfig
from isoflop.trainer import RunConfig

BASE = "base"
RATES = (0.5, 1.0, 2.0)
USUAL_RATES, USUAL_PAIRS = 4, 8  # runs per arm that a budget is divided by: values tried, and pairs compared
NOISE_RUNS = 3
SHARE = 0.85  # of the budget that the runs are planned for
SHORTEST = 20  # steps of a run
GROWING = 1000  # steps of a run by which the mean step is timed, where steps grow
FIXED, ANYTIME = "fixed", "anytime"
RULES = (FIXED, ANYTIME)
VOCABULARY, IDS = "model.vocab_size", "data.vocab_size"
LONGEST = 80  # characters of a name


@dataclass(frozen=True)
class Question:
    """What `isoflop lab compare` is asked.

    Attributes:
        arms: each the assignments of one arm, divided by blanks; `norm=rms` is short for `model.norm=rms`.
        base: the configuration that they change; None: the lab's small one.
        base_words: how the command named it.
        set: assignments for all.
        tokens: that a run of the base reads; 0: what the budget has room for.
        smallest: bits per byte that matter.
    """

    arms: tuple[str, ...]
    sources: tuple[str, ...] = ()
    base: RunConfig | None = None
    base_words: str = ""
    set: tuple[str, ...] = ()
    equal: str = "seconds"
    tokens: float = 0.0
    smallest: float = 0.02
    rule: str = "fixed"
    tune: bool = True
    name: str = ""


def claim_of(question: Question, budget: float, workers: int, store: Store) -> Claim:
    """The question as a claim: each arm is compared with the base in held-out bits per byte, and `supported` means that
    it is better. If the same was asked before, it is the claim that was fixed then.

    Raises:
        UserError: for an assignment that cannot be built, or a budget without room for runs of any use.
    """
    if not question.arms:
        raise UserError("compare needs at least one --arm FIELD=VALUE, as in --arm norm=rms")
    if question.equal not in LENGTHS:
        raise UserError(
            f"--equal {question.equal} is not one of {', '.join(LENGTHS)}{nearest(question.equal, LENGTHS)}"
        )
    if not question.smallest > 0:
        raise UserError(f"--smallest {question.smallest:g} is not above 0")
    if question.name:
        check_own_name(question.name, f"--name {question.name}")
    if question.rule not in RULES:
        raise UserError(f"--rule {question.rule} is not one of {', '.join(RULES)}{nearest(question.rule, RULES)}")

    named = {BASE: Arm(words="the base")}
    for text in question.arms:
        sets = assignments(text.split())
        if not sets:
            raise UserError("an --arm is empty; say what it changes, as in --arm norm=rms")
        named[unused(label(text), named)] = Arm(set=sets, words=text)
    given = assignments(question.set)
    comparisons = tuple(
        Comparison(
            measure="bits_per_byte",
            arm=arm,
            against=BASE,
            expect="lower",
            smallest=question.smallest,
            words=f"{named[arm].words} is better than the base",
        )
        for arm in named
        if arm != BASE
    )
    what = question.arms[0] if len(question.arms) == 1 else f"each of {', '.join(question.arms)}"
    claim = Claim(
        name=question.name or name_of(question, list(named)[1:]),
        statement=f"With {what} the model is better.",
        question=f"Are held-out bits per byte lower at equal {question.equal}, by a difference that is not shown to be "
        f"within {question.smallest:g}?",
        prediction="Each arm is better than the base.",
        setup=Setup(
            base=to_key(question.base) if question.base else {},
            set=given,
            sources=question.sources,
            tokens=question.tokens or 1.0,
            equal=(question.equal,),
            rates=RATES if question.tune else (),
            rule="anytime" if question.rule == ANYTIME else "fixed",
            pairs=64,
            minutes=budget / 60,
        ),
        arms=dict(named),
        comparisons=comparisons,
    )
    before = asked_before(claim, store, bool(question.tokens))
    return before or (claim if question.tokens else with_tokens(claim, budget, workers))


def name_of(question: Question, arms: Sequence[str]) -> str:
    """A name that says what is compared with what: the same arms on another base or size are another comparison."""
    base = Path(question.base_words.rpartition(":")[2] or question.base_words).stem if question.base_words else ""
    on = [label(text) for text in (base, " ".join(question.set)) if text]
    return "-".join(["compare", *arms, *(["on", *on] if on else [])])[:LONGEST].rstrip("-_")


def command_of(question: Question, claim: Claim) -> str:
    """The command that repeats a comparison anywhere: with the length of its runs, which a budget decides only once."""
    options: list[tuple[str, str]] = [("--arm", arm) for arm in question.arms]
    options += [("--base", question.base_words)] if question.base_words else []
    options += [("--set", one) for one in question.set]
    options += [("--equal", question.equal), ("--tokens", f"{claim.setup.tokens:.0f}")]
    options += [("--smallest", f"{question.smallest:g}"), ("--rule", question.rule)]
    options += [("--name", question.name)] if question.name else []
    said = [f"{option} {quoted(value)}" for option, value in options]
    said += [] if question.tune else ["--no-tune"]
    return " ".join(["isoflop lab compare", *map(quoted, question.sources), *said])


def asked_before(claim: Claim, store: Store, given: bool) -> Claim | None:
    """The same question as it was fixed before, in the words of then, with the length of runs that was found for it
    then, unless one is `given`: what it has on record is of that length, and looks at it count."""
    for fixed in reversed(store.versions(claim.name)):
        tokens = claim.setup.tokens if given else fixed.setup.tokens
        there = replace(claim, question=fixed.question, setup=replace(claim.setup, tokens=tokens))
        if there.hash == fixed.hash:
            return there
    return None


def with_tokens(claim: Claim, budget: float, workers: int) -> Claim:
    """The claim with runs as long as the budget has room for, where every arm has its rates tuned and pairs enough to
    be compared."""
    configs = making.configs_of(claim)
    count = GROWING if configs[BASE].batch.grows else 1
    first = making.with_steps(configs[BASE], count)
    each = timed(making.ReadyArm(BASE, first)).seconds / count  # of one step
    tuned = USUAL_RATES if len(claim.setup.rates) > 1 else 0
    runs = len(configs) * (tuned + USUAL_PAIRS) + NOISE_RUNS
    steps = int((SHARE * budget * max(1, workers) / runs - OVERHEAD) / each)
    if steps < SHORTEST:
        needed = (SHORTEST * each + OVERHEAD) * runs / max(1, workers) / SHARE
        raise UserError(
            f"in {budget:.0f} s there is room for {runs} runs of {max(steps, 0)} steps, too few: give a --budget of "
            f"{math.ceil(needed / 60)}m or more, fewer arms, --no-tune, or the length of a run as --tokens"
        )
    return replace(claim, setup=replace(claim.setup, tokens=float(making.with_steps(first, steps).tokens)))


def assignments(words: Sequence[str]) -> tuple[str, ...]:
    """Words as assignments. A vocabulary is the tokenizer's and the model's: what sets one of them sets both."""
    found = [spelled_out(word) for word in words]
    for name, other in ((VOCABULARY, IDS), (IDS, VOCABULARY)):
        values = [word.partition("=")[2] for word in found if word.startswith(f"{name}=")]
        if values and not any(word.startswith(f"{other}=") for word in found):
            found.append(f"{other}={values[-1]}")
    return tuple(found)


def spelled_out(word: str) -> str:
    """`norm=rms` as `model.norm=rms`; what names a field of the whole configuration stays.

    Raises:
        UserError: for a word without "=", or a field that there is not.
    """
    name, sign, _ = word.partition("=")
    head = name.partition(".")[0]
    if not sign or not head:
        raise UserError(f"{word!r} is not of the form FIELD=VALUE, as in norm=rms or optim.lr=1e-3")
    if head in RunConfig.__dataclass_fields__:
        return word
    known = [field.name for field in fields(ModelConfig)]
    if head in known:
        return f"model.{word}"
    raise UserError(
        f"{head!r} in {word!r} is not a field of the model or of the run{nearest(head, known)} (`isoflop config` "
        "lists all)"
    )


def label(text: str) -> str:
    """A name made of what an arm sets: "model.norm=rms" -> "norm-rms"."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in text.replace("model.", ""))
    kept = kept.strip("-_")[:40]
    return kept if NAME.fullmatch(kept) else "arm"


def unused(name: str, taken: Collection[str]) -> str:
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbered if one not in taken)
