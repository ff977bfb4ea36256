"""Argument types that several commands share, and several assignments after one --set."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from isoflop.errors import UserError

# An empty prompt starts a document; for an empty stop there is an error of its own.
MAY_BE_EMPTY = ("--prompt", "--stop")

Sources = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="[SOURCE ...]",
        help_behavior_hint="",
        help="[NAME=]PATH[@COLUMN][:WEIGHT]; a file, folder, glob or -",
    ),
]
Trusted = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="PACKAGE", help="a package that a configuration may take blocks from"),
]
Heldout = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="PATH", help="held-out text, in place of a share of the sources"),
]
Assignments = Annotated[
    tuple[str, ...],
    tyro.conf.UseAppendAction,
    tyro.conf.arg(metavar="FIELD=VALUE", help="set one field of the configuration, as in model.norm=layer"),
]
Strict = Annotated[bool, tyro.conf.arg(help="treat every unreadable file or record as an error")]
JsonWithProgress = Annotated[bool, tyro.conf.arg(help="print one JSON object; progress goes to standard error")]
RunArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="a run folder")]


def spread_set(arguments: Sequence[str]) -> list[str]:
    """Allow several assignments after one --set: `--set a.b=1 c.d=2` becomes `--set a.b=1 --set c.d=2`.

    A word is an assignment if the part before its first "=" begins with a field of RunConfig; sources such as
    `books=PATH` are not changed.
    """
    spread: list[str] = []
    in_set = False  # whether the last flag was --set and has its first assignment
    for word in arguments:
        if word.startswith("--") or not in_set:
            in_set = False
        elif is_assignment(word):
            spread.append("--set")
        if spread and spread[-1] == "--set":
            in_set = True
        spread.append(word)
    return spread


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raise UserError for an option with an empty value, most likely a shell variable that is not set."""
    pairs = [*pairwise(arguments), *(tuple(word.split("=", 1)) for word in arguments if "=" in word)]
    for option, value in pairs:
        if option.startswith("--") and not value and option not in MAY_BE_EMPTY:
            raise UserError(f"{option} is empty; give it a value or leave it out")


def is_assignment(word: str) -> bool:
    from isoflop.trainer.config import RunConfig

    return word.partition("=")[0].partition(".")[0] in RunConfig.__dataclass_fields__ and "=" in word
