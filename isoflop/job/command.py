"""`isoflop train` as one call: which of the four ways to start it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.config import override
from isoflop.job.like import train_like
from isoflop.job.listener import Listener
from isoflop.job.start import pretrain, resume, start_from, train, with_sources
from isoflop.plan.advice import Advice
from isoflop.trainer import RunConfig, RunResult


@dataclass(frozen=True)
class Command:
    """What was asked for, by the names of the command's options; see start.pretrain for most of them.

    Attributes:
        base: the configuration of --recipe or --config, without what `assignments` (--set) change; None: neither.
        budget: empty: 3 minutes, or the length that `base` has.
        resume: a run to resume; None: a new one. `sources` and `heldout` then say where its text is now, if it was
            moved.
        like: a run to be repeated but for what `assignments` change; None: none. `sources` and `heldout` as with
            `resume`.
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


def carry_out(command: Command, listener: Listener | None = None) -> RunResult | Advice | RunConfig:
    """Resume a run, repeat one with a change, train a configuration that is decided, or plan one within a budget and
    train it.

    Returns:
        What the run came to; of a dry run the plan, or the configuration where nothing is planned.

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
        config = decided(command, command.base)
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


def decided(command: Command, base: RunConfig) -> RunConfig:
    """A configuration as it is to be trained: on the text that is named, from the weights that are named."""
    config = with_sources(base, command.sources, command.heldout, command.strict)
    return override(start_from(config, command.init) if command.init else config, command.assignments)
