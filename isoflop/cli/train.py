"""The command `train`: from text and a budget, from a configuration, or resuming a run."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from isoflop.cli.arguments import Assignments, Heldout, Sources, Strict, Trusted
from isoflop.errors import UserError, quoted


def train(
    sources: Sources = (),
    *,
    budget: Annotated[
        str,
        tyro.conf.arg(
            metavar="BUDGET",
            help_behavior_hint="(default: 3m)",
            help="90s, 3m, 2h, 1e15 (FLOPs), 5e6tok, 500steps; +1h with --resume",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="", help="the run folder; by default a new one in runs/"),
    ] = None,
    recipe: Annotated[
        str,
        tyro.conf.arg(metavar="FILE.py:NAME", help_behavior_hint="", help="a Python function that returns a RunConfig"),
    ] = "",
    config: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE.json", help_behavior_hint="", help="a run's config.json, to train with the same settings"
        ),
    ] = None,
    task: Annotated[
        str,
        tyro.conf.arg(
            metavar="causal_lm|seq2seq",
            help="seq2seq: an encoder-decoder on pairs, one per line, input and output separated by a tab or a space",
        ),
    ] = "causal_lm",
    init: Annotated[
        str,
        tyro.conf.arg(
            metavar="RUN", help_behavior_hint="", help="start from the weights of another run, on other text"
        ),
    ] = "",
    heldout: Heldout = (),
    resume: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="RUN",
            help_behavior_hint="",
            help="resume a run that was stopped; with SOURCE if its text was moved",
        ),
    ] = None,
    like: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="RUN",
            help_behavior_hint="",
            help="repeat RUN as a new run, changing only what --set names; with SOURCE if its text was moved",
        ),
    ] = None,
    dry_run: Annotated[bool, tyro.conf.arg(help="print the plan and train nothing")] = False,
    no_pilots: Annotated[
        bool, tyro.conf.arg(help="skip the tiny runs on the text that sharpen the loss forecast")
    ] = False,
    strict: Strict = False,
    profile: Annotated[bool, tyro.conf.arg(help="profile a few steps and show the result in the report")] = False,
    diagnose: Annotated[
        bool,
        tyro.conf.arg(
            help="show gradients, activations and updates by layer in the report; how often: --set every.diagnose=STEPS"
        ),
    ] = False,
    set: Assignments = (),
    trust_code: Trusted = (),
) -> None:
    """Pretrain a GPT on raw text within a budget."""
    from isoflop import job
    from isoflop.config import to_dict
    from isoflop.files import to_json
    from isoflop.model.registry import trust_code as trusting
    from isoflop.parallel.launch import is_main
    from isoflop.recipe import load_recipe
    from isoflop.screen import Screen, listener_for, show_outcome
    from isoflop.trainer import RunConfig, RunResult
    from isoflop.trainer.diagnose import Diagnose
    from isoflop.trainer.profile import Profile

    with trusting(*trust_code):
        screen = Screen(quiet=not is_main(), is_result=dry_run)
        hooks = (*((Profile(),) if profile else ()), *((Diagnose(),) if diagnose else ()))
        listener = listener_for(screen, hooks=hooks)
        new_run_options = {
            "--recipe": recipe,
            "--config": config,
            "--init": init,
            "--strict": strict,
            "--no-pilots": no_pilots,
        }
        if resume is not None:
            refuse_with_resume(
                resume,
                {"--like": like, "--out": out, **new_run_options, "--dry-run": dry_run, "--no-pilots": no_pilots},
            )
        if like is not None:
            refuse_with_like(like, {"--budget": budget, **new_run_options, "--task": task != "causal_lm" and task})
        command = job.Command(
            sources=sources,
            budget=budget,
            out=out,
            base=load_recipe(recipe, config),
            assignments=set,
            heldout=heldout,
            init=init,
            strict=strict,
            task=task,
            dry_run=dry_run,
            pilots=not no_pilots,
            resume=resume,
            like=like,
        )
        outcome = job.run_command(command, listener)
    if isinstance(outcome, RunResult):
        show_outcome(screen, outcome.folder)
    elif isinstance(outcome, RunConfig):
        screen.say(to_json(to_dict(outcome)), verbatim=True)
    if dry_run:
        screen.require_shown()


def refuse_with_like(run: str, options: dict[str, Any]) -> None:
    """Raise UserError for an option that cannot be combined with --like."""
    for name, value in options.items():
        if value:
            raise UserError(
                f"{name} does not go with --like: only --set changes anything, and text, tokenizer and steps are those "
                f"of {run}; leave one of the two out"
            )


def refuse_with_resume(run: str, options: dict[str, Any]) -> None:
    """Raise UserError, with advice, for an option that cannot be combined with --resume."""
    for name, value in options.items():
        if value:
            raise UserError(
                f"{name} does not go with --resume: a run resumes with its config.json; to train on other text or with "
                f"other settings from its weights: isoflop train SOURCE --init {quoted(run)}"
            )
