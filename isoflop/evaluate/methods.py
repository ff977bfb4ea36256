"""How a suite's items are presented and scored: METHODS, and METRICS.

options        the likelihood of each option after one context; the likeliest is chosen
contexts       the likelihood of one continuation after each context (WinoGrande's partial evaluation)
pairs          the likelihood of a good and of a bad sentence (BLiMP)
last_word      the word that follows: whether it is the first choice, and its perplexity (LAMBADA)
exact_match    a generated answer is compared with the expected one (GSM8K)

A method is a class with the methods of `Method` and a line in METHODS; a metric is a line in METRICS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from isoflop.errors import UserError
from isoflop.evaluate.items import Item, answer_of, joined, listed, replaced
from isoflop.evaluate.likelihood import Likelihood, Request
from isoflop.evaluate.suite import Suite, compiled
from isoflop.evaluate.templates import fill

Values = npt.NDArray[np.float64]
Score = Callable[[Sequence[Request]], list[Likelihood]]
Write = Callable[[Sequence[str], int, Sequence[str]], tuple[list[str], int]]  # prompts, tokens, stops -> texts, cut


@dataclass(frozen=True)
class Metric:
    """A metric of a suite.

    Attributes:
        words: its description.
        shares: its values per item are 0 or 1, their mean is the score.
        of: the score from the mean over items.
        lower: less is better.
        lm_eval: what lm-eval calls it.
    """

    words: str
    shares: bool = True
    of: Callable[[Values], Values] = lambda means: means
    lower: bool = False
    lm_eval: str = ""


def exp(means: Values) -> Values:
    """e to a mean, finite also for a long text that a model gives no chance."""
    return np.exp(np.minimum(means, 700.0))


METRICS: dict[str, Metric] = {
    "likelihood": Metric("the likeliest option is right", lm_eval="acc"),
    "per_token": Metric("the likeliest per token is right"),
    "per_character": Metric("the likeliest per character is right", lm_eval="acc_norm"),
    "per_byte": Metric("the likeliest per byte of UTF-8 is right", lm_eval="acc_bytes"),
    "unconditional": Metric("the likeliest against itself without the context is right", lm_eval="acc_mutual_info"),
    "first_choice": Metric("every token of the word is the first choice", lm_eval="acc"),
    "perplexity": Metric("of the word", shares=False, of=exp, lower=True, lm_eval="perplexity"),
    "exact_match": Metric("the generated answer is the expected one", lm_eval="exact_match"),
}
FREE = ("likelihood", "per_token", "per_character", "per_byte")  # that need no further forward pass


@dataclass(frozen=True)
class Judged:
    """The results of a suite: for each metric a value per item, and the number of items with a context that was cut."""

    values: Mapping[str, Values]
    cut: int = 0


class Method(Protocol):
    """One way to present and score items.

    Attributes:
        words: its description.
        needs: required fields of a suite; takes: optional ones.
        metrics: the possible ones, the default first.
    """

    words: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    takes: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]

    def make(self, suite: Suite, record: dict[str, Any], at: str, number: int) -> Item:
        """An item from its fields.

        Raises:
            UserError: naming `at`, for fields that are not there or make no sense.
        """

    def chance(self, item: Item) -> float:
        """The expected score of a random choice."""

    def judge(self, suite: Suite, items: Sequence[Item], score: Score, write: Write) -> Judged:
        """Score a model on the items."""


class Options:
    words: ClassVar[str] = "the likelihood of each option after one context"
    needs: ClassVar[tuple[str, ...]] = ("context", "options", "answer")
    takes: ClassVar[tuple[str, ...]] = ("answer_is", "delimiter")
    metrics: ClassVar[tuple[str, ...]] = (*FREE, "unconditional")

    def make(self, suite: Suite, record: dict[str, Any], at: str, number: int) -> Item:
        options = listed(suite, suite.options, record, "options", at)
        context = replaced(suite, fill(suite.context, record, at))
        return Item(
            number,
            subset_of(suite, record, at),
            (context,) * len(options),
            options,
            joined(suite, options, "option", at),
            answer_of(suite, record, options, at),
        )

    def chance(self, item: Item) -> float:
        return 1 / len(item.options)

    def judge(self, suite: Suite, items: Sequence[Item], score: Score, write: Write) -> Judged:
        asked = [
            Request(item.shots + context, text)
            for item in items
            for context, text in zip(item.contexts, item.continuations, strict=True)
        ]
        wanted = metrics_of(suite)
        alone = [Request("", text) for item in items for text in item.continuations]
        unconditional = "unconditional" in wanted
        scored = score([*asked, *alone] if unconditional else asked)
        baseline = [one.nats for one in scored[len(asked) :]] if unconditional else [0.0] * len(asked)

        values: dict[str, list[float]] = {name: [] for name in wanted}
        first, cut = 0, 0
        for item in items:
            part = slice(first, first + len(item.options))
            first = part.stop
            nats = np.array([one.nats for one in scored[part]])
            lengths = {
                "likelihood": np.ones(len(nats)),
                "per_token": np.array([one.tokens for one in scored[part]]),
                "per_character": np.array([len(option) for option in item.options]),
                "per_byte": np.array([len(option.encode()) for option in item.options]),
            }
            for name in wanted:
                compared = nats - baseline[part] if name == "unconditional" else nats / np.maximum(1, lengths[name])
                values[name].append(float(np.argmax(compared) == item.answer))
            cut += any(one.cut for one in scored[part])
        return Judged({name: np.array(one) for name, one in values.items()}, cut)


class Contexts(Options):
    words: ClassVar[str] = "the likelihood of one continuation after each context"
    needs: ClassVar[tuple[str, ...]] = ("contexts", "continuation", "answer")
    metrics: ClassVar[tuple[str, ...]] = ("likelihood",)  # what is scored is the same for all, and so are its lengths

    def make(self, suite: Suite, record: dict[str, Any], at: str, number: int) -> Item:
        contexts = listed(suite, suite.contexts, record, "contexts", at)
        text = replaced(suite, fill(suite.continuation, record, at))
        return Item(
            number,
            subset_of(suite, record, at),
            contexts,
            (text,) * len(contexts),
            joined(suite, [text] * len(contexts), "continuation", at),
            answer_of(suite, record, contexts, at),
        )


class Pairs(Options):
    words: ClassVar[str] = "the likelihood of a good and of a bad sentence"
    needs: ClassVar[tuple[str, ...]] = ("good", "bad")
    takes: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = FREE

    def make(self, suite: Suite, record: dict[str, Any], at: str, number: int) -> Item:
        pair = tuple(replaced(suite, fill(template, record, at)) for template in (suite.good, suite.bad))
        if not all(pair):
            raise UserError(f"{at}: its {'bad' if pair[0] else 'good'} sentence is empty")
        return Item(number, subset_of(suite, record, at), ("", ""), pair, pair, 0)


class LastWord:
    words: ClassVar[str] = "the word that follows"
    needs: ClassVar[tuple[str, ...]] = ("context", "continuation")
    takes: ClassVar[tuple[str, ...]] = ("delimiter",)
    metrics: ClassVar[tuple[str, ...]] = ("first_choice", "perplexity")

    def make(self, suite: Suite, record: dict[str, Any], at: str, number: int) -> Item:
        context = replaced(suite, fill(suite.context, record, at))
        word = replaced(suite, fill(suite.continuation, record, at))
        if not word:
            raise UserError(f"{at}: its continuation is empty")
        return Item(number, subset_of(suite, record, at), (context,), (word,), (suite.delimiter + word,))

    def chance(self, item: Item) -> float:
        return 0.0

    def judge(self, suite: Suite, items: Sequence[Item], score: Score, write: Write) -> Judged:
        scored = score([Request(item.shots + item.contexts[0], item.continuations[0]) for item in items])
        values = {
            "first_choice": np.array([float(one.greedy) for one in scored]),
            "perplexity": np.array([-one.nats for one in scored]),
        }
        return Judged(values, sum(one.cut > 0 for one in scored))


class ExactMatch:
    words: ClassVar[str] = "a generated answer is compared with the expected one"
    needs: ClassVar[tuple[str, ...]] = ("context", "answer")
    takes: ClassVar[tuple[str, ...]] = ("delimiter", "extract", "ignore", "stops", "tokens")
    metrics: ClassVar[tuple[str, ...]] = ("exact_match",)

    def make(self, suite: Suite, record: dict[str, Any], at: str, number: int) -> Item:
        context = replaced(suite, fill(suite.context, record, at))
        answer = fill(suite.answer, record, at)
        item = Item(number, subset_of(suite, record, at), (context,), (answer,), (suite.delimiter + answer,))
        expected = extracted(suite, answer)
        if not expected:
            raise UserError(f"{at}: nothing is left of its answer {answer[-60:]!r} to compare with")
        return replace(item, expected=expected)

    def chance(self, item: Item) -> float:
        return 0.0

    def judge(self, suite: Suite, items: Sequence[Item], score: Score, write: Write) -> Judged:
        texts, cut = write([item.shots + item.contexts[0] for item in items], suite.tokens, suite.stops)
        right = [float(extracted(suite, text) == item.expected) for item, text in zip(items, texts, strict=True)]
        return Judged({"exact_match": np.array(right)}, cut)


METHODS: dict[str, Method] = {
    "options": Options(),
    "contexts": Contexts(),
    "pairs": Pairs(),
    "last_word": LastWord(),
    "exact_match": ExactMatch(),
}
# fields of a suite that some methods have no use for
DEPENDS = tuple(dict.fromkeys(name for method in METHODS.values() for name in (*method.needs, *method.takes)))


def method_of(suite: Suite) -> Method:
    """The method of a suite.

    Raises:
        UserError: if there is none of that name, a field that it needs is missing, one is there that it has no use for,
            or a metric is not one of its.
    """
    if suite.method not in METHODS:
        raise UserError(f"suite {suite.name}: method = {suite.method!r} is not one of {', '.join(METHODS)}")
    method = METHODS[suite.method]
    blank = Suite("", "", ())
    for name in method.needs:
        if getattr(suite, name) == getattr(blank, name):
            raise UserError(f"suite {suite.name}: method {suite.method} needs the field {name!r}, which is missing")
    for name in DEPENDS:
        if name not in (*method.needs, *method.takes) and getattr(suite, name) != getattr(blank, name):
            raise UserError(
                f"suite {suite.name}: method {suite.method} has no use for the field {name!r}; leave it out"
            )
    for name in (*([suite.metric] if suite.metric else []), *suite.also):
        if name not in method.metrics:
            raise UserError(
                f"suite {suite.name}: metric {name!r} is not one of those of method {suite.method}: "
                f"{', '.join(method.metrics)}"
            )
    for one in suite.reference:
        if one.metric and one.metric not in method.metrics:
            raise UserError(
                f"suite {suite.name}: reference {one.model}: metric {one.metric!r} is not one of its method's"
            )
        shares = METRICS[one.metric or metrics_of(suite)[0]].shares
        if one.score < 0 or (shares and one.score > 1):
            raise UserError(
                f"suite {suite.name}: reference {one.model}: score = {one.score:g} is not "
                + ("a share from 0 to 1; write 81.5 % as 0.815" if shares else "a perplexity")
            )
    return method


def metrics_of(suite: Suite) -> list[str]:
    """The metrics of a suite, the headline first: those that it names, and those that need no further forward pass."""
    possible = METHODS[suite.method].metrics
    free = [name for name in possible if name != "unconditional"]
    return list(dict.fromkeys([suite.metric or possible[0], *suite.also, *free]))


def subset_of(suite: Suite, record: dict[str, Any], at: str) -> str:
    name = fill(suite.subset, record, at)
    return str(suite.names.get(name, name))


def extracted(suite: Suite, text: str) -> str:
    """The part of an answer that is compared: the first group of `extract` where it last matches, else all of it, but
    not what `ignore` matches, and without blanks around. A match in which the group has no part does not count."""
    if suite.extract:
        wanted = compiled(suite.extract, "extract")
        group = min(1, wanted.groups)
        text = next((found[group] for found in reversed([*wanted.finditer(text)]) if found[group] is not None), text)
    for pattern in suite.ignore:
        text = compiled(pattern, "ignore").sub("", text)
    return text.strip()
