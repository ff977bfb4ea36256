"""`isoflop train` as one call: chooses one of the four ways to start a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.config import override
from isoflop.job.like import train_like
from isoflop.job.listener import Listener
from isoflop.job.start import pretrain, resume, start_from, train, with_sources
from isoflop.plan.advice import Advice
from isoflop.plan.unused import unused
from isoflop.trainer import RunConfig, RunResult


@dataclass(frozen=True)
class Command:
    """The options of the command by name; see start.pretrain for most of them.

    Attributes:
        base: the configuration of --recipe or --config, before `assignments` (--set) are applied; None: neither.
        budget: empty: 3 minutes, or the length of `base`.
        resume: a run to resume; None: a new run. `sources` and `heldout` are then the new places of its text, if it was
            moved.
        like: a run to repeat, except for `assignments`; None: none. `sources` and `heldout` as with `resume`.
    """

    sources: Sequence[str] = ()
    budget: str = ""
    out: Path | None = None
    base: RunConfig | None = None
    assignments: Sequence[str] = ()
    heldout: Sequence[str] = ()
    init: str = ""
    strict: bool = False
    task: str = RunConfig.task
    dry_run: bool = False
    pilots: bool = True
    resume: Path | str | None = None
    like: Path | str | None = None


def run_command(command: Command, listener: Listener | None = None) -> RunResult | Advice | RunConfig:
    """Resume a run, repeat one with changes, train a given configuration, or plan one within a budget and train it.

    Returns:
        The run's result; for a dry run the plan, or the configuration if nothing is planned.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    if command.resume is not None:
        return resume(
            command.resume,
            command.budget,
            sources=command.sources,
            heldout=command.heldout,
            assignments=command.assignments,
            listener=listener,
        )

    if command.like is not None:
        return train_like(
            command.like,
            command.out,
            sources=command.sources,
            heldout=command.heldout,
            assignments=command.assignments,
            dry_run=command.dry_run,
            listener=listener,
        )

    if command.base is not None and not command.budget:
        config = apply_options(command, command.base)
        for line in unused(config, command.assignments):
            (listener or Listener()).say(line)
        return config if command.dry_run else train(config, command.out, listener=listener)

    return pretrain(
        command.sources,
        command.budget or "3m",
        command.out,
        base=command.base,
        assignments=command.assignments,
        heldout=command.heldout,
        init=command.init,
        strict=command.strict,
        task=command.task,
        dry_run=command.dry_run,
        listener=listener,
        pilots=command.pilots,
    )


def apply_options(command: Command, base: RunConfig) -> RunConfig:
    """The configuration to train: `base` with the sources, the initial weights and the assignments of the command."""
    config = with_sources(base, command.sources, command.heldout, command.strict)
    return override(start_from(config, command.init) if command.init else config, command.assignments)
