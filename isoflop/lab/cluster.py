"""Runs jobs on the machines of a Ray cluster, one processor for each, and reports each as it ends.

Ray is the extra `ray` and is imported when a cluster is asked for. It starts one task per run and moves texts
(remote.py); it decides nothing else. A run whose worker is lost is run again.
"""

import logging
from collections.abc import Callable, Iterator
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import torch

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job
from isoflop.lab.remote import packed, read_result, to_text, work
from isoflop.lab.workers import Done

LOCAL = "local"  # the address of a cluster that is this machine, started for this command
ATTEMPTS = 3  # of a run whose worker is lost
PATIENCE = 60.0  # seconds without a result after which the cluster is asked whether it still has processors
INSTALL = "pip install 'isoflop[ray]'"


def task(text: str, data: list[Any]) -> str:
    """What a worker of the cluster does: a job with one thread. `data` holds a reference to its prepared data, which is
    fetched only where it is missing; inside a list Ray does not fetch it by itself."""
    torch.set_num_threads(1)
    return work(text, lambda: import_module("ray").get(data[0]))


class Cluster:
    """A Pool of the processors of a Ray cluster.

    Args:
        address: "auto" for the cluster that this machine belongs to, "local" for one that is this machine alone,
            HOST:PORT, or ray://HOST:PORT for one that this machine does not belong to.
        count: the most runs at a time; 0: one for each processor.
        say: is told when a worker was lost.

    Raises:
        UserError: if Ray is not installed, no cluster answers, or it has no processors.
    """

    def __init__(
        self, address: str, count: int = 0, trusted: tuple[str, ...] = (), say: Callable[[str], None] = print
    ) -> None:
        try:
            self.ray: Any = import_module("ray")
        except ImportError as error:
            raise UserError(f"--ray needs Ray, which is not installed ({error}): {INSTALL}") from None
        self.count, self.trusted, self.say = count, trusted, say
        self.sent: dict[str, Any] = {}  # references to prepared data in the cluster, by fingerprint
        self.connect(address)
        if not self.processors():
            self.ray.shutdown()
            raise UserError(f"the Ray cluster at {address} has no processors; add a machine: ray start --address ...")
        self.start = self.ray.remote(num_cpus=1, max_retries=0)(task)

    def connect(self, address: str) -> None:
        """Raises:
        UserError: if no cluster answers.
        """
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == LOCAL:
            quiet |= {"include_dashboard": False, "num_cpus": self.count or None}
        try:
            self.ray.init(address=address, **quiet)
        except Exception as error:  # Ray raises that itself, of a machine that took too long to start
            why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(
                f"no Ray cluster answers at --ray {address} ({why}); start one with `ray start --head` and take --ray "
                f"auto, set RAY_AUTH_MODE=token for one that asks for a token, or take --ray {LOCAL}"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ray.shutdown()  # ends this command's tasks too

    def processors(self) -> int:
        return int(self.ray.cluster_resources().get("CPU", 0))

    @property
    def at_once(self) -> int:
        """One run per processor that the cluster has now: machines may join and leave."""
        there = max(1, self.processors())
        return min(there, self.count) if self.count else there

    def run(self, jobs: Iterator[Job], done: Done) -> None:
        """See workers.Pool."""
        running: dict[Any, tuple[Job, int]] = {}
        more = True
        while more or running:
            while more and len(running) < self.at_once:
                wanted = next(jobs, None)
                more = wanted is not None
                if wanted is not None:
                    running[self.submit(wanted)] = wanted, 1
            if not running:
                break

            ended, _ = self.ray.wait(list(running), num_returns=1, timeout=PATIENCE)
            if not ended and not self.processors():
                raise UserError("the Ray cluster has no processors left; the same command resumes on another one")
            for reference in ended:
                job, attempt = running.pop(reference)
                try:
                    text = self.ray.get(reference)
                except self.ray.exceptions.RayTaskError as error:
                    raise failed(error) or error from None
                except self.ray.exceptions.RayError as error:
                    why = type(error).__name__
                    if attempt == ATTEMPTS:
                        raise UserError(
                            f"the worker of arm {job.arm} was lost {ATTEMPTS} times ({why}; out of memory?); the same "
                            "command resumes"
                        ) from None
                    self.say(f"{job.arm:16} its worker was lost ({why}); run again")
                    running[self.submit(job)] = job, attempt + 1
                else:
                    done(job, read_result(text))

    def submit(self, job: Job) -> Any:
        """Start a job. Returns the reference to its result."""
        if job.data and job.data not in self.sent:
            self.sent[job.data] = self.ray.put(packed(job))
        return self.start.remote(to_text(job, self.trusted), [self.sent[job.data]] if job.data else [])


def failed(error: Any) -> UserError | None:
    """What to say of a task that failed before our code ran; None for an error of ours."""
    if isinstance(getattr(error, "cause", None), ImportError) or "failed to import" in str(error):
        return UserError(f"a machine of the cluster cannot import isoflop: install the same version there ({INSTALL})")
    return None
