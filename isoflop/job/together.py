"""A job by several processes: the first one does it, the others follow it into training.

Preparing data, timing the machine and planning are the first one's; the others wait, however long. What it then carries
out it sends them as an order: configuration, run folder, prepared data. They train along, measure along, and wait for
the next order until there is none.

The first process times the machine with all threads of its host while the others rest: that stands for what they reach
together, which was not measured (bench/scaling.py can), and where they do not, the clock moves the run's end.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from isoflop.config import from_dict, to_dict
from isoflop.data.prepared import Data
from isoflop.job.outcome import measure_last
from isoflop.parallel.launch import joined
from isoflop.parallel.mesh import Group
from isoflop.records import RunFolder, read_run
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer import train as train_steps
from isoflop.trainer.hooks import HeldOut, Samples
from isoflop.trainer.task import make_task

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

    del run.__wrapped__  # whoever asks for the signature sees the one without the group
    return run


def again(group: Group, folder: RunFolder) -> bool:
    """Whether a run that is to begin in a folder is the one that these processes were in before torchrun started them
    again, so that it goes on from its last checkpoint."""
    if not (group.launch or group.restarts) or not folder.config.is_file() or folder.result.is_file():
        return False
    run = read_run(folder.path)
    launches = [event.launch for event in run.events if event.launch is not None]
    last = launches[-1] if launches else run.environment.launch  # the latter: killed before its first event
    return last == group.launch and (group.restarts > 0 or group.launch != "none")


def send(group: Group, config: RunConfig, folder: RunFolder, prepared: Data, resume: bool) -> None:
    """Tell the others what is about to be trained."""
    group.order(
        {
            "config": to_dict(config),
            "folder": str(folder.path.resolve()),
            "data": prepared.account().folder,
            "resume": resume,
        }
    )


def follow(group: Group) -> RunResult | None:
    """Carry out what the first process sends, until it sends nothing more; the last run's result."""
    result = None
    while (order := group.order()) is not None:
        config = from_dict(RunConfig, order["config"])
        folder = RunFolder(Path(order["folder"]), mine=False)
        prepared = make_task(config).open_data(Path(order["data"]), verify_checksums=False)  # the first one did
        result = train_steps(
            config, folder.path, hooks=[HeldOut(), Samples()], prepared=prepared, resume=order["resume"], group=group
        )
        measure_last(folder, prepared, config, group)
    return result
