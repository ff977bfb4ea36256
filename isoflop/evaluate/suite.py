"""A suite: a small TOML file with the questions and the scoring.

    name = "arc_easy"                        what it is called
    about = "..."                            one line
    source = "..."; licence = "..."          where the items come from
    files = ["arc_easy.jsonl"]               patterns, matched from the right of a path; JSON lines, .csv or .tsv
    items = 2376                             how many the whole suite has; left out: as many as the files hold
    method = "options"                       an entry of METHODS (methods.py), with the fields that it needs
    metric = "per_character"                 the headline, an entry of METRICS (methods.py)

The other fields are those of `Suite`. The suites that come with isoflop are in suites/; a suite of one's own is such a
file anywhere, named by its path, and its items lie next to it.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from isoflop.config import convert, from_dict, nearest
from isoflop.errors import UserError
from isoflop.evaluate.templates import check_template
from isoflop.untrusted import foreign, read_text

BUILT_IN = Path(__file__).parent / "suites"
LISTED = " (`isoflop config` lists all)"  # part of the message about an unknown field of a run's configuration
LARGEST_SUITE = 2**20  # bytes of a suite file


@dataclass(frozen=True)
class Reference:
    """A published figure of another model.

    Attributes:
        model: whose it is.
        metric: an entry of METRICS; "": the suite's headline.
        score: as a share of 1, or the perplexity.
        source: where it is published.
        note: how it differs from what is measured here; "": in nothing that is known.
    """

    model: str
    score: float
    source: str
    metric: str = ""
    note: str = ""


@dataclass(frozen=True)
class Shots:
    """Solved examples in front of each item.

    Attributes:
        count: how many.
        files, where: as of the suite; without `files` they come from the suite's own, and an item is never its own
            example.
        same: an example has the same text by this template as the item, such as its subject.
        between: the separator of two examples, and of the last one and the item.
    """

    count: int
    files: tuple[str, ...] = ()
    where: dict[str, Any] = field(default_factory=dict)
    same: str = ""
    between: str = "\n\n"


@dataclass(frozen=True)
class Suite:
    """The fields of a suite file. Templates are filled from an item's fields (templates.py).

    Attributes:
        folder: of the file; the items of a suite of one's own lie in or below it.
        built_in: it came with isoflop.
        items: of the whole suite; a score on another number of them is not stored as the suite's. 0: not known.
        where: only items in which each of these fields has the value, or one of the values.
        subset: template of the subset that an item counts to; "": there are none. names: subsets under other names.
        replace: [pattern, replacement] pairs, regular expressions applied to contexts and options in their order.
        before: the text in front of all examples and the item.
        context: template of what is read.
        delimiter: between context and option; it belongs to the option, as in lm-eval.
        options: of `options`: the field that holds them ("choices", "choices.text"), or a template for each.
        contexts: of `contexts`: likewise.
        continuation: of `contexts` and `last_word`: template of what is scored.
        good, bad: of `pairs`: templates of the two sentences.
        answer: template of the right answer.
        answer_is: "number" of the option from 0, "letter", or its "text".
        metric: the headline; also: further metrics.
        extract: of `exact_match`: a pattern whose first group, where it last matches, is the answer; in the expected
            answer too, if it matches there. ignore: patterns left out of both before they are compared.
        stops, tokens: where an answer that is written ends.
    """

    name: str
    method: str
    files: tuple[str, ...]
    about: str = ""
    source: str = ""
    licence: str = ""
    items: int = 0
    where: dict[str, Any] = field(default_factory=dict)
    subset: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    replace: tuple[tuple[str, str], ...] = ()
    before: str = ""
    context: str = ""
    delimiter: str = " "
    options: Any = ""
    contexts: Any = ""
    continuation: str = ""
    good: str = ""
    bad: str = ""
    answer: str = ""
    answer_is: str = "number"
    metric: str = ""
    also: tuple[str, ...] = ()
    extract: str = ""
    ignore: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    tokens: int = 64
    shots: Shots | None = None
    reference: tuple[Reference, ...] = ()
    folder: str = ""
    built_in: bool = False


ANSWERS = ("number", "letter", "text")
OWN = ("folder", "built_in")  # fields that are not in a file
TEMPLATES = ("subset", "before", "context", "continuation", "good", "bad", "answer")


def names() -> list[str]:
    """The suites that come with isoflop."""
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def find_suite(name: str) -> Suite:
    """A suite by its name, or by the path of its file.

    Raises:
        UserError: if there is none, or the file is malformed or has the name of a suite that comes with isoflop.
    """
    if name in names():
        return replace(read_suite(BUILT_IN / f"{name}.toml"), built_in=True)
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        suite = read_suite(path)
        taken = suite.name.lower()  # scores are files, and some file systems ignore case
        if taken not in names():
            return suite
        if path.resolve() == (BUILT_IN / f"{taken}.toml").resolve():
            return replace(suite, built_in=True)
        raise UserError(
            f"{path}: name = {suite.name!r} is a suite that comes with isoflop, for which its score would be taken; "
            "give it another name"
        )
    raise UserError(
        f"suite {name!r} is not one of {', '.join(names())}{nearest(name, names())}; a suite of your own is named by "
        "the path of its .toml file"
    )


def read_suite(path: Path) -> Suite:
    """A suite file. What depends on its method is checked in methods.py.

    Raises:
        UserError: in one line that names the file and the field, or the line where it is not TOML.
    """
    with foreign(f"{path} is not TOML"):
        fields = tomllib.loads(read_text(path, LARGEST_SUITE).removeprefix("\ufeff"))  # as some editors begin a file
    for name in OWN:
        if name in fields:
            raise UserError(f"{path}: unknown field {name}")
    try:
        suite = from_dict(Suite, {**fields, "folder": str(path.resolve().parent)})
        check_fields(suite)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removesuffix(LISTED)}") from None
    return suite


def check_fields(suite: Suite) -> None:
    """Raises UserError, naming the field, for what no method could use."""
    if not suite.name or not suite.name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"name = {suite.name!r} is not made of letters, digits, - and _")
    if not suite.files:
        raise UserError("files = [] names no file that holds the items")
    check_patterns(suite.files, "files")
    if suite.answer_is not in ANSWERS:
        raise UserError(f"answer_is = {suite.answer_is!r} is not one of {', '.join(ANSWERS)}")
    if suite.items < 0:
        raise UserError(f"items = {suite.items} is negative; it is how many the whole suite has, or left out")
    if suite.tokens < 1:
        raise UserError(f"tokens = {suite.tokens} is too small")
    if not all(suite.stops):
        raise UserError(f"stops = {list(suite.stops)} has an empty string, which would end every answer at once")
    for name in TEMPLATES:
        check_template(getattr(suite, name), name)
    for name in ("options", "contexts"):
        check_listed(getattr(suite, name), name)
    for name, patterns in (("extract", [suite.extract]), ("ignore", suite.ignore)):
        for pattern in patterns:
            compiled(pattern, name)
    for pattern, by in suite.replace:
        with foreign(f"replace = {[pattern, by]} is not a regular expression and its replacement"):
            compiled(pattern, "replace").sub(by, "")
    if suite.shots is not None:
        if suite.shots.count < 0:
            raise UserError(f"shots.count = {suite.shots.count} is negative")
        check_template(suite.shots.same, "shots.same")
        check_patterns(suite.shots.files, "shots.files")


def check_patterns(patterns: Sequence[str], name: str) -> None:
    """Raise UserError for a pattern that does not name files below the folder with the items."""
    for pattern in patterns:
        path = PurePosixPath(pattern)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{name} = {pattern!r} is not the end of a file's path, as in items.jsonl or blimp/*.jsonl; the folder "
                "is that of the suite's file, or --items"
            )


def check_listed(value: Any, name: str) -> None:
    if isinstance(value, str):
        if "{" in value:
            raise UserError(
                f"{name} = {value!r} is a template; write the name of a field that holds all {name}, without braces, "
                f'or a list with a template for each, as in ["{{a}}", "{{b}}"]'
            )
        return
    for template in convert(tuple[str, ...], value, name):
        check_template(template, name)


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """A regular expression of a suite file."""
    with foreign(f"{name} = {pattern!r} is not a regular expression"):
        return re.compile(pattern)


def is_wanted(record: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether an item has the values that a suite's `where` asks for."""
    return all(record.get(name) in (value if isinstance(value, list) else [value]) for name, value in where.items())
