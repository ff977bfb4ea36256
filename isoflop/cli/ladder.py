"""The command `ladder`: a scaling law of one's own text."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from isoflop.cli.arguments import Assignments, Heldout, JsonWithProgress, Sources, Strict, Trusted
from isoflop.errors import UserError


def ladder(
    sources: Sources = (),
    *,
    budget: Annotated[str, tyro.conf.arg(metavar="20m", help="time for all runs together")] = "20m",
    targets: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="2h [1e17 ...]",
            help_behavior_hint="(default: six times the budget)",
            help="budgets to forecast, time or FLOPs; the largest decides tokenizer and context",
        ),
    ] = (),
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="DIR", help_behavior_hint="", help="where runs and page are kept; by default ladders/SOURCE"
        ),
    ] = None,
    heldout: Heldout = (),
    workers: Annotated[
        int,
        tyro.conf.arg(
            metavar="N",
            help_behavior_hint="",
            help="runs at a time; by default the number with the highest total throughput",
        ),
    ] = 0,
    dry_run: Annotated[bool, tyro.conf.arg(help="say what would be run, and run nothing")] = False,
    strict: Strict = False,
    json: JsonWithProgress = False,
    set: Assignments = (),
    trust_code: Trusted = (),
) -> None:
    """Small runs on your text that say what larger ones will reach: a scaling law, which `train` uses from then on."""
    from isoflop.files import to_json
    from isoflop.job import Listener
    from isoflop.ladder.begin import Wanted
    from isoflop.ladder.climb import climb
    from isoflop.ladder.messages import to_dict
    from isoflop.model.registry import trust_code as trusting
    from isoflop.screen import Screen, listener_for

    if workers < 0:
        raise UserError(f"--workers {workers} is negative; 2 runs two at a time")
    wanted = Wanted(
        sources=sources,
        budget=budget,
        targets=targets,
        out=out,
        heldout=heldout,
        assignments=set,
        strict=strict,
        workers=workers or None,
        trusted=trust_code,
        dry_run=dry_run,
    )
    screen = Screen(is_result=not json)
    listener = Listener(say=lambda line: print(line, file=sys.stderr, flush=True)) if json else listener_for(screen)
    with trusting(*trust_code):
        made = climb(wanted, listener)
    if json:
        print(to_json(to_dict(made)), end="")
    elif dry_run:
        screen.require_shown()
