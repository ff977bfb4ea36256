"""Train one model on a Slurm cluster, through submitit (github.com/facebookincubator/submitit).

    pip install isoflop submitit                  # on the login node, in an environment that the nodes see too
    python recipes/slurm.py --out /shared/runs/13b --nodes 16 --gpus 8 --hours 48 --partition P -- \\
        /shared/webtext --recipe recipes/gpt3.py:gpt3_13b --set parallel.mode=hsdp runtime.recompute=true
    python recipes/slurm.py --out runs/try --cluster local --processes 2 --hours 0.2 -- notes/ --budget 60steps

The arguments after `--` are those of `isoflop train`. One task is one process. Slurm starts the processes, and each
gets the environment that torchrun would have given it. `--cluster local` runs the same job on this machine.

A job that is preempted or reaches its time limit saves, is requeued and resumes: Slurm sends SIGUSR2 (submitit requests
it `--grace` seconds before the end), and submitit calls `checkpoint`, which stops isoflop by SIGTERM and waits until it
has saved. A job that Slurm requeues after a node failed resumes as well. A job is requeued at most `--requeues` times
for its time limit.

submitit passes this class to the nodes as a pickle in the folder `slurm` of --out. The run folder contains no pickle.
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
PORTS = (20_000, 40_000)  # of which a job takes one, so that two jobs on a node have different ones


class Training:
    """`isoflop train`, as one task of a job.

    Args:
        arguments: of `isoflop train`.
        again: how often submitit has requeued this job.
    """

    def __init__(self, arguments: list[str], again: int = 0) -> None:
        self.arguments, self.again = arguments, again
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Train until the run is finished, or stopped and saved.

        Raises:
            RuntimeError: if it failed; submitit marks the job as failed then.
        """
        # Slurm signals every process, and this signal would kill isoflop's: child processes inherit that it is ignored
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        command = [sys.executable, "-m", "isoflop", "train", *self.arguments]
        self.process = subprocess.Popen(command, env={**os.environ, **place(self.again)})
        signal.signal(signal.SIGUSR2, handler)
        code = self.process.wait()
        if code and code not in SAVED:
            raise RuntimeError(f"isoflop train ended with exit code {code}; its words are above")
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before it requeues the job."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it may just have ended
                os.kill(self.process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # wait() is what this interrupts
        return submitit.helpers.DelayedSubmission(Training(self.arguments, self.again + 1))


def place(again: int) -> dict[str, str]:
    """The environment that torchrun would give this task. The job's number is the launch, and its requeues are the
    restarts, by which isoflop recognises the run in --out as its own and resumes it."""
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
    """The executor: cluster and resources of the job."""
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
        # when one fails, the others must not wait for it; and srun does not always take the cores from sbatch
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
    parser.add_argument("--gpus", type=int, default=0, help="GPUs per node; 0: on processors")
    parser.add_argument("--processes", type=int, default=0, help="processes per node; 0: one per GPU")
    parser.add_argument("--cpus", type=int, default=8, help="processor cores per process")
    parser.add_argument("--hours", type=float, default=24.0, help="time limit of the job")
    parser.add_argument("--grace", type=int, default=180, help="seconds before the time limit, for saving")
    parser.add_argument("--requeues", type=int, default=20)
    parser.add_argument("--partition", default="")
    parser.add_argument("--cluster", choices=["slurm", "local"], default="slurm")
    parser.add_argument("--wait", action="store_true", help="wait until the job has ended")
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
