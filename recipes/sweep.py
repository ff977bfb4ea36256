"""Many independent runs, scheduled by Ray (github.com/ray-project/ray) or as a Slurm array.

    pip install isoflop ray
    python recipes/sweep.py notes/ --budget 3m --vary optim.lr=3e-4,1e-3,3e-3 model.norm=rms,layer
    python recipes/sweep.py notes/ --budget 3m --vary seed=0,1,2 --engine slurm --partition P --gpus 1

Each run is one process with its own folder in --out, named after its settings. Started again, the sweep continues with
the unfinished runs. Ray distributes them over this machine, or over a cluster if one is running (`ray start`;
RAY_ADDRESS names it), with --cpus cores and --gpus GPUs each, and repeats a run that was lost with its machine. Nothing
is decided while they run: for early stopping and search use Ray Tune.
"""

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from isoflop.records import read_run


def settings(vary: list[str]) -> list[list[str]]:
    """Every combination of the values: ["a=1,2", "b=x"] -> [["a=1", "b=x"], ["a=2", "b=x"]]."""
    fields = [text.partition("=") for text in vary]
    return [
        [f"{name}={value}" for (name, _, _), value in zip(fields, values, strict=True)]
        for values in itertools.product(*(values.split(",") for _, _, values in fields))
    ]


def train(arguments: list[str], chosen: list[str], out: str, cpus: int) -> float:
    """Start or resume one run. Returns its held-out bits per byte."""
    run = Path(out) / "-".join(text.replace("=", "-").replace("/", "_") for text in chosen)
    if not (run / "result.json").exists():
        new = [*arguments, *(word for text in chosen for word in ("--set", text)), "--out", str(run)]
        begun = ["--resume", str(run)] if (run / "config.json").exists() else new
        threads = {"OMP_NUM_THREADS": str(cpus)}
        command = [sys.executable, "-m", "isoflop", "train", *begun]
        subprocess.run(command, check=True, env={**os.environ, **threads})
    return float(read_run(run).result.heldout.bits_per_byte)


def with_ray(arguments: list[str], choices: list[list[str]], given: argparse.Namespace) -> list[float]:
    import ray

    ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=given.cpus, num_gpus=given.gpus, max_retries=3)(train)
    return ray.get([task.remote(arguments, chosen, str(given.out), given.cpus) for chosen in choices])


def with_slurm(arguments: list[str], choices: list[list[str]], given: argparse.Namespace) -> list[float]:
    import submitit

    executor = submitit.AutoExecutor(folder=given.out / "slurm", cluster=given.engine)
    asked: dict[str, Any] = {"timeout_min": max(1, round(60 * given.hours)), "slurm_array_parallelism": given.at_once}
    if given.gpus:
        asked["gpus_per_node"] = given.gpus
    if given.partition:
        asked["slurm_partition"] = given.partition
    executor.update_parameters(slurm_cpus_per_task=given.cpus, **asked)
    count = len(choices)
    jobs = executor.map_array(train, [arguments] * count, choices, [str(given.out)] * count, [given.cpus] * count)
    return [job.result() for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--budget", default="3m", help="budget of each run")
    parser.add_argument("--vary", nargs="+", required=True, metavar="FIELD=A,B")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--engine", choices=["ray", "slurm", "local"], default="ray", help="local: submitit, no Slurm")
    parser.add_argument("--cpus", type=int, default=1, help="processor cores per run")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs per run")
    parser.add_argument("--hours", type=float, default=24.0, help="slurm: time limit of a run")
    parser.add_argument("--at-once", type=int, default=64, help="slurm: runs at the same time")
    parser.add_argument("--partition", default="")
    given = parser.parse_args()
    given.out = given.out.resolve()
    arguments = [*(str(Path(source).resolve()) for source in given.sources), "--budget", given.budget]
    choices = settings(given.vary)
    run = with_ray if given.engine == "ray" else with_slurm
    for chosen, bits in sorted(zip(choices, run(arguments, choices, given), strict=True), key=lambda row: row[1]):
        print(f"{bits:.4f} bits per byte   {' '.join(chosen)}")


if __name__ == "__main__":
    main()
