"""A job by several processes: the first one does it, the others follow it into training.

Preparing data, timing the machine and planning are the first one's; the others wait, however long. What it then trains
it sends them as an order: configuration, run folder, prepared data. They train along, measure along, and wait for the
next order until there is none.

The first process times the machine with all threads of its host while the others rest: that stands for what they reach
together, which was not measured (bench/scaling.py can), and where they do not, the clock moves the run's end.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from isoflop.job.job import Job
from isoflop.parallel.launch import joined
from isoflop.parallel.mesh import Group
from isoflop.records import RunFolder, read_run
from isoflop.trainer import RunResult
from isoflop.trainer.signals import Restarting

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def together(job: Callable[Concatenate[Group, Arguments], Result]) -> Callable[Arguments, Result]:
    """Make a job of the first process, whose first argument is the group, one that all processes may call."""

    @functools.wraps(job)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with joined() as group:
            if not group.first:
                followed: Any = follow(group)
                return followed
            result = job(group, *args, **kwargs)
            group.order(None)
            return result

    whole = inspect.signature(job)  # whoever asks sees the one without the group
    run.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])  # type: ignore[attr-defined]
    return run


def follow(group: Group) -> RunResult | None:
    """Train what the first process orders, until it orders nothing more; the last run's result."""
    result = None
    while (order := group.order()) is not None:
        job = Job.ordered(group, order)
        try:
            result = job.take_steps([])
        except Restarting:  # the next order is the same run's next attempt
            continue
        job.measure()
    return result


def again(group: Group, folder: RunFolder) -> bool:
    """Whether a run that is to begin in a folder is the one that these processes were in before torchrun started them
    again, so that it goes on from its last checkpoint."""
    if not (group.launch or group.restarts) or not folder.config.is_file() or folder.result.is_file():
        return False
    run = read_run(folder.path)
    launches = [event.launch for event in run.events if event.launch is not None]
    last = launches[-1] if launches else run.environment.launch  # the latter: killed before its first event
    return last == group.launch and (group.restarts > 0 or group.launch != "none")
