"""Agreement between the processes of a run: which settings can be divided, when all stop, when the end moves.

Decisions by clocks and signals are made between two steps, with one collective: rank 0's clock counts, and a signal to
any process stops all of them after the same step.
"""

from typing import Any

import torch

from isoflop.errors import UserError
from isoflop.model.blocks.part import Part
from isoflop.model.count import build_on_meta
from isoflop.optim.timetable import Decision
from isoflop.parallel.config import DIVIDED
from isoflop.parallel.mesh import Group
from isoflop.trainer.config import RunConfig


def agree(group: Group, signal: int | None, decision: Decision | None) -> tuple[int | None, Decision | None]:
    """The signal and decision that apply to all processes after a step: a signal that any of them received, and the
    decision of rank 0's clock."""
    if group.alone:
        return signal, decision

    first_signal, has_decision = group.all_max([signal or 0, int(decision is not None)])
    if has_decision:
        decision = Decision.from_dict(group.broadcast(decision.to_dict() if decision else None))
    return first_signal or None, decision


def check_world(config: RunConfig, group: Group) -> None:
    """Check that the run can be divided among these processes. Nothing is allocated.

    Raises:
        UserError: naming the field that prevents it.
    """
    config.parallel.resolve(group.size, group.hosts)
    if config.parallel.gather == "bfloat16" and config.runtime.dtype != "bfloat16":
        raise UserError(
            f"parallel.gather = bfloat16 with runtime.dtype = {config.runtime.dtype} would round the weights; use "
            "--set runtime.dtype=bfloat16, or leave it out"
        )
    if group.alone:
        return

    mode, _ = config.parallel.resolve(group.size, group.hosts)
    if config.average.entry.on and mode in DIVIDED:
        raise UserError(
            f"average.name = {config.average.name} needs all weights in every process, and parallel.mode = {mode} "
            "divides them; use --set parallel.mode=ddp or --set average.name=none"
        )

    gpus = torch.cuda.device_count()
    if config.runtime.device.startswith("cuda") and gpus < group.local_size:
        raise UserError(
            f"{group.local_size} processes on this host have {gpus} GPUs: start as many processes as GPUs, or use "
            "--set runtime.device=cpu"
        )

    batch = config.batch
    for name, sequences in (("batch.sequences", batch.sequences), ("batch.ramp_from", batch.ramp_from)):
        if sequences % group.size:
            next_multiple = -(-sequences // group.size) * group.size
            raise UserError(
                f"{name} = {sequences} cannot be divided among {group.size} processes; use --set {name}={next_multiple}"
            )
        rows = sequences // group.size
        if rows > batch.micro and rows % batch.micro:
            raise UserError(
                f"batch.micro_sequences = {batch.micro} does not divide the {rows} of {name} = {sequences} that each "
                f"of {group.size} processes gets; use a divisor of {rows}"
            )

    if any(not part.separate for part in parts_of(config)):
        raise UserError(
            f"model.norm = {config.model.norm.name!r} takes statistics over the sequences of a pass, and with "
            f"{group.size} processes a pass has other sequences; use rms or layer, or one process"
        )


def world_of(config: RunConfig, group: Group) -> dict[str, Any]:
    """The processes and their mode, for the run's history."""
    mode, copies = config.parallel.resolve(group.size, group.hosts)
    return {"processes": group.size, "hosts": group.hosts, "mode": mode, "copies": copies, "launch": group.launch}


def parts_of(config: RunConfig) -> list[Part]:
    return [part for part in build_on_meta(config.model, config.task).modules() if isinstance(part, Part)]


def seed_step(group: Group, seed: int, step: int) -> None:
    """Seed the generator before a step of several processes by seed, step and rank, so that each has its own dropout
    and a resumed run repeats it. A single process keeps its generator, whose state is in the checkpoint."""
    if not group.alone:
        torch.manual_seed((seed * 1_000_003 + step) * 65_537 + group.rank)
