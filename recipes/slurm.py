"""Train one model on a Slurm cluster, through submitit (github.com/facebookincubator/submitit).

    pip install isoflop submitit                  # on the login node, in an environment that the nodes see too
    python recipes/slurm.py --out /shared/runs/13b --nodes 16 --gpus 8 --hours 48 --partition P -- \\
        /shared/webtext --recipe recipes/gpt3.py:gpt3_13b --set parallel.mode=hsdp runtime.recompute=true
    python recipes/slurm.py --out runs/try --cluster local --processes 2 --hours 0.2 -- notes/ --budget 60steps

What follows `--` is what one would write after `isoflop train`. One task is one process, and Slurm is what starts them:
each is told by its environment what torchrun would have told it. `--cluster local` runs the same job on this machine.

A job that is preempted or out of its hours saves, is put back into the queue and goes on from there: Slurm sends
SIGUSR2 (submitit asks for it `--grace` seconds before the end), submitit calls `checkpoint`, which stops isoflop by
SIGTERM and waits until it has saved. So does one that Slurm itself requeues after a node failed. At most `--requeues`
times for want of hours.

submitit hands this class to the nodes as a pickle in --out's folder `slurm`; that is its own business, between you and
you. The run folder holds none.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import submitit

SAVED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # isoflop's exit codes when it was stopped and has saved
PORTS = (20_000, 40_000)  # from which a job takes one, so that two on a node do not meet


class Training:
    """`isoflop train`, as one task of a job.

    Args:
        arguments: of `isoflop train`.
        again: how often this job has been put back into the queue by submitit.
    """

    def __init__(self, arguments: list[str], again: int = 0) -> None:
        self.arguments, self.again = arguments, again
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train until the run is finished, or stopped and saved.

        Raises:
            RuntimeError: if it failed; submitit marks the job as failed then.
        """
        # Slurm signals every process of a step, and isoflop's own would die of this one: what is ignored is inherited
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        command = [sys.executable, "-m", "isoflop", "train", *self.arguments]
        self.process = subprocess.Popen(command, env={**os.environ, **place(self.again)})
        signal.signal(signal.SIGUSR2, handler)
        code = self.process.wait()
        if code and code not in SAVED:
            raise RuntimeError(f"isoflop train ended with exit code {code}; its words are above")
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit does before it puts the job back into the queue."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may be over just now
                os.kill(self.process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # wait() is what this interrupts
        return submitit.helpers.DelayedSubmission(Training(self.arguments, self.again + 1))


def place(again: int) -> dict[str, str]:
    """What torchrun would say to this task. The job's number is the launch, and its requeues are the restarts, by which
    isoflop knows that the run in --out is its own and goes on with it."""
    job = submitit.JobEnvironment()
    low, high = PORTS
    restarts = again + int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return {
        "MASTER_ADDR": job.hostnames[0],
        "MASTER_PORT": str(low + int("".join(filter(str.isdigit, job.job_id))) % (high - low)),
        "RANK": str(job.global_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_RANK": str(job.local_rank),
        "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
        "GROUP_RANK": str(job.node),
        "TORCHELASTIC_RUN_ID": f"slurm-{job.job_id}",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }


def executor(given: argparse.Namespace) -> submitit.AutoExecutor:
    """Where the job goes, and what it asks for."""
    where = submitit.AutoExecutor(
        folder=given.out.parent / f"{given.out.name}-slurm",
        cluster=given.cluster,
        slurm_max_num_timeout=given.requeues,
    )
    asked: dict[str, Any] = {
        "name": given.out.name,
        "nodes": given.nodes,
        "tasks_per_node": given.processes or given.gpus or 1,
        "timeout_min": max(1, round(60 * given.hours)),
        "stderr_to_stdout": True,
        "slurm_cpus_per_task": given.cpus,
        "slurm_signal_delay_s": given.grace,
        # when one fails, the others have nobody to wait for; and srun does not always take the cores from sbatch
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={given.cpus}"],
        "slurm_additional_parameters": {"requeue": True},
    }
    if given.gpus:
        asked["gpus_per_node"] = given.gpus
    if given.partition:
        asked["slurm_partition"] = given.partition
    where.update_parameters(**asked)
    return where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run folder, on a file system that all nodes share")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="GPUs a node; 0: on processors")
    parser.add_argument("--processes", type=int, default=0, help="processes a node; 0: one for each GPU")
    parser.add_argument("--cpus", type=int, default=8, help="processor cores a process")
    parser.add_argument("--hours", type=float, default=24.0, help="after which Slurm stops the job")
    parser.add_argument("--grace", type=int, default=180, help="seconds before that, in which to save")
    parser.add_argument("--requeues", type=int, default=20)
    parser.add_argument("--partition", default="")
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm")
    parser.add_argument("--wait", action="store_true", help="until the job is over")
    parser.add_argument("arguments", nargs="+", help="of `isoflop train`, after --")
    given = parser.parse_args()
    out = given.out.resolve()
    given.out = out
    job = executor(given).submit(Training([*given.arguments, "--out", str(out)]))
    print(f"job {job.job_id}; what it says: {job.paths.stdout}", flush=True)
    if given.wait:
        print(f"exit codes: {job.results()}")


if __name__ == "__main__":
    main()
