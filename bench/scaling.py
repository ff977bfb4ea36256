"""The cost of training one model by several processes: time on this machine, and bytes sent.

    python bench/scaling.py [--rounds 5] [--json]      about twelve minutes on two cores

Time. One process with two threads next to two processes with one thread each, the same batch, in turns. Printed is the
median over rounds of the ratio of each round, so that a drifting machine speed does not decide. 100 % means that two
processes are as fast as one process on both cores: the second process adds no cores, and the ratio measures the cost of
dividing the batch and exchanging gradients instead of using threads. Each turn starts a new group of processes and
times it after a warm-up.

Bytes. Counted are the bytes that the kernel has sent on each process's TCP sockets (tcpi_bytes_sent of TCP_INFO) during
the timed steps: gradients, parameters, the loss, the norm, the stop flag, headers. Next to it is the least that any
algorithm has to send (parallel/cost.py).
"""

import argparse
import itertools
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from isoflop.config import override
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.parallel.config import DIVIDED
from isoflop.parallel.cost import Parallelism, traffic
from isoflop.parallel.launch import joined
from isoflop.parallel.mesh import Group
from isoflop.parallel.shard import distribute
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.processes import agree
from isoflop.trainer.step import take_step
from isoflop.trainer.task import make_task
from record import record

# name: layers, d_model, heads, context, batch, vocabulary (a demo's size, and five times its parameters)
SIZES = {"small": (4, 128, 4, 256, 16, 4096), "medium": (6, 320, 5, 256, 16, 8192)}
STEPS = {"small": 16, "medium": 4}  # steps timed per turn
WARM_UP = 2  # steps
BYTES_SENT = 200  # offset of tcpi_bytes_sent in the kernel's struct tcp_info (Linux 4.19 and later)
TCP_INFO = 11


def config_of(size: str, optimizer: str) -> RunConfig:
    layers, d_model, heads, context, batch, vocabulary = SIZES[size]
    fields = {
        "model.layers": layers,
        "model.d_model": d_model,
        "model.heads": heads,
        "model.context": context,
        "model.vocab_size": vocabulary,
        "batch.sequences": batch,
        "optim.name": optimizer,
    }
    return override(RunConfig(), [f"{name}={value}" for name, value in fields.items()])


def sent() -> int:
    """The bytes sent so far by this process's TCP sockets."""
    total = 0
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                info = one.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
        except OSError:  # closed in the meantime, or not TCP
            continue
        if len(info) >= BYTES_SENT + 8:
            total += struct.unpack_from("Q", info, BYTES_SENT)[0]
    return total


def member(size: str, optimizer: str, mode: str, replicas: int, threads: int, steps: int, group: Group) -> None:
    """One process of the group: train, and print seconds and bytes sent."""
    config = config_of(size, optimizer)
    config = override(config, [f"parallel.mode={mode}", f"parallel.replicas={replicas}"])
    seed_everything(0)
    runtime = make_runtime("cpu", "float32", threads)
    with torch.device("meta" if mode in DIVIDED else "cpu"):
        model = build_model(config.task, config.model)
    task = make_task(config)
    layout = distribute(model, task.loss, group, config.parallel, "cpu")
    optimizers = build(model, config.optim, torch.float32, layout.matrices)
    rows = config.batch.sequences // group.size
    tokens = torch.randint(config.model.vocab_size, (rows, config.model.context + 1))

    def step() -> None:
        take_step(
            model,
            optimizers,
            task,
            (tokens[:, :-1], tokens[:, 1:]),
            micro=rows,
            runtime=runtime,
            clip=1.0,
            scale=1e-3,
            layout=layout,
        )
        agree(group, None, None)

    for _ in range(WARM_UP):
        step()
    group.barrier()
    before, started = sent(), time.perf_counter()
    for _ in range(steps):
        step()
    seconds = (time.perf_counter() - started) / steps
    counted = group.gather((sent() - before) / steps)
    if group.first:
        parameters = sum(p.numel() for p in model.parameters())
        root = parameters - sum(p.numel() for unit in model.units() for p in unit.parameters())
        kept = root + sum(p.numel() for p in model.units()[-1].parameters())
        print(json.dumps({"seconds": seconds, "sent": counted, "parameters": parameters, "kept": kept}))


def measure(size: str, optimizer: str, mode: str, processes: int, threads: int, steps: int) -> dict[str, Any]:
    """Run a new group of processes, each started as by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    replicas = 2 if mode == "hsdp" else 0
    arguments = ["--member", size, optimizer, mode, str(replicas), str(threads), str(steps)]
    base = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    members = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        if processes > 1:
            base |= {name: str(value) for name, value in place.items()}
            base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        members.append(
            subprocess.Popen([sys.executable, __file__, *arguments], env=dict(base), stdout=subprocess.PIPE, text=True)
        )
    printed = [one.communicate()[0] for one in members]
    if any(one.returncode for one in members):
        raise SystemExit(f"a process of {mode} failed; see above")
    found: dict[str, Any] = json.loads(printed[0])
    return found


def least(mode: str, processes: int, found: dict[str, Any]) -> float:
    layout = Parallelism(mode, processes, 2 if mode == "hsdp" else 0)  # type: ignore[arg-type]
    return traffic(layout, found["parameters"], kept=found["kept"]).total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/scaling.json")
    parser.add_argument("--member", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.member:
        size, optimizer, mode, *numbers = given.member
        replicas, threads, steps = map(int, numbers)
        with joined() as group:
            member(size, optimizer, mode, replicas, threads, steps, group)
        return
    print("time per step, for the same batch: one process with 2 threads, then two with 1 each")
    times = [time_size(size, given.rounds) for size in SIZES]
    print("bytes sent per process and step, next to the least possible")
    combinations = itertools.product((("ddp", 2), ("fsdp", 2), ("ddp", 4), ("fsdp", 4), ("hsdp", 4)), ("adamw", "muon"))
    sent_bytes = [count_bytes(mode, processes, optimizer) for (mode, processes), optimizer in combinations]
    if given.json:
        record("scaling", {"time": times, "bytes": sent_bytes})


def time_size(size: str, rounds: int) -> dict[str, Any]:
    """The speed of two processes relative to one with both threads, by mode: the ratio of each round."""
    ratios: dict[str, list[float]] = {"ddp": [], "fsdp": []}
    alone: list[float] = []
    for _ in range(rounds):
        alone.append(measure(size, "muon", "none", 1, 2, STEPS[size])["seconds"])
        for mode, found in ratios.items():
            found.append(alone[-1] / measure(size, "muon", mode, 2, 1, STEPS[size])["seconds"])
    shares = ", ".join(
        f"{mode} {statistics.median(found):.0%} ({min(found):.0%} to {max(found):.0%})"
        for mode, found in ratios.items()
    )
    print(f"  {size:8} {statistics.median(alone) * 1e3:7.1f} ms per step alone; {shares}", flush=True)
    layers, width, _, context, batch, vocabulary = SIZES[size]
    shape = f"{layers} x {width}, context {context}, batch {batch}, vocabulary {vocabulary:,}"
    return {"size": size, "shape": shape, "seconds_alone": alone, "ratios": ratios}


def count_bytes(mode: str, processes: int, optimizer: str) -> dict[str, Any]:
    found = measure("small", optimizer, mode, processes, 1, 5)
    counted, bound = statistics.mean(found["sent"]), least(mode, processes, found)
    print(
        f"  {mode:5} {processes} processes, {optimizer:5}  {counted / 1e6:8.2f} MB, "
        f"least {bound / 1e6:8.2f} MB: {counted / bound:.2f}",
        flush=True,
    )
    return {"mode": mode, "processes": processes, "optimizer": optimizer, "sent": counted, "least": bound}


if __name__ == "__main__":
    main()
