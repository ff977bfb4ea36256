"""A job on several processes: rank 0 does the job, and the others follow it into training.

Rank 0 prepares the data, times the machine and plans while the others wait. It then sends them each training as an
order: configuration, run folder, prepared data. They train and evaluate with it, and wait for the next order until
there is none.

Rank 0 times the machine with all threads of its host while the others are idle. The plan assumes that speed for all
processes together, which is not measured (bench/scaling.py can do that); if they are slower, the run's end is moved.
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


def on_all_processes(job: Callable[Concatenate[Group, Arguments], Result]) -> Callable[Arguments, Result]:
    """Decorates a job of rank 0, whose first argument is the group, so that all processes can call it."""

    @functools.wraps(job)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with joined() as group:
            if not group.first:
                last_result: Any = follow(group)
                return last_result
            result = job(group, *args, **kwargs)
            group.order(None)
            return result

    signature = inspect.signature(job)  # the public signature has no group
    run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return run


def follow(group: Group) -> RunResult | None:
    """Train what rank 0 orders until there are no more orders. Returns the last run's result."""
    result = None
    while (order := group.order()) is not None:
        job = Job.from_order(group, order)
        try:
            result = job.take_steps([])
        except Restarting:  # the next order is the same run's next attempt
            continue
        job.measure()
    return result


def was_restarted(group: Group, folder: RunFolder) -> bool:
    """Whether a run that is about to start in a folder is the one that these processes trained before torchrun
    restarted them, so that it resumes from its last checkpoint."""
    if not (group.launch or group.restarts) or not folder.config.is_file() or folder.result.is_file():
        return False
    run = read_run(folder.path)
    launches = [event.launch for event in run.events if event.launch is not None]
    last_launch = launches[-1] if launches else run.environment.launch  # no event if it was killed early
    return last_launch == group.launch and (group.restarts > 0 or group.launch != "none")
