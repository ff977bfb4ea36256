"""Checks that each process's part of a run fits in memory, before the first step; if not, finds a setting that fits.

estimate.py counts a model and measures its activations; parallel/cost.py computes the part of one process in each mode.
Rank 0 estimates, and all processes refuse with the same message, for the least free memory of any of them. Processes
that compute on a host's CPUs share its memory equally.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import cast

import torch

from isoflop.data.loader import Batches
from isoflop.errors import UserError
from isoflop.model.build import build_model
from isoflop.parallel.cost import Mode, Parallelism, memory
from isoflop.parallel.mesh import Group
from isoflop.runtime import free_memory, make_runtime
from isoflop.trainer.config import RunConfig
from isoflop.trainer.memory.estimate import (
    FLOAT,
    average_bytes,
    bytes_per_sequence,
    count_bytes,
    format_bytes,
    plainly_fits,
)
from isoflop.trainer.task import Task

CAST = 2  # bytes: autocast keeps a bfloat16 copy of every weight from forward to backward


@dataclass(frozen=True)
class Footprint:
    """The memory needs of a run, before they are divided among processes.

    Attributes:
        parameters: of the model.
        unit: parameters of the largest unit.
        kept: parameters that remain gathered from forward to backward: those outside the units, and the last unit.
        state: bytes of the optimiser's state and of an average of the weights, for all parameters.
        stack: bytes of the largest stack in Muon's step, if Muon is used.
        sequence: bytes of activations per sequence in a pass.
        cast: bytes that autocast keeps per parameter.
    """

    parameters: int
    unit: int
    kept: int
    state: int
    stack: int
    sequence: int
    cast: int

    def per_process(self, layout: Parallelism, rows: int, passes: int, every: bool = False) -> int:
        """Peak bytes on one process, in a step of `passes` passes with `rows` sequences each.

        Args:
            every: gradients are reduced after every pass (parallel.reduce), so that none are held unsharded.
        """
        need = memory(
            layout,
            self.parameters,
            largest_unit=self.unit,
            kept=self.kept,
            activations=self.sequence * rows,
            state_bytes=self.state / self.parameters,
            cast_bytes=self.cast,
            whole_gradients=passes > 1 and not every,
        )
        # Muon's step holds, of a stack: this process's matrices, their product and its square; with ddp also all
        # results, otherwise the rows sent and received
        muon = self.stack * (3 / layout.processes + (1 if layout.shards == 1 else 2 / layout.shards))
        return round(need.total + muon)


def measure_footprint(config: RunConfig, task: Task, batches: Batches, device: str) -> Footprint:
    """Count and estimate. Uses torch's random generators."""
    with torch.device("meta"):
        model = build_model(config.task, config.model)
    task.prepare(model)
    runtime = make_runtime(device, config.runtime.dtype)
    weights, moments, stack = count_bytes(model, config.optim)
    units = [sum(tensor.numel() for tensor in unit.parameters()) for unit in model.units()]
    return Footprint(
        parameters=weights // FLOAT,
        unit=max(units),
        kept=weights // FLOAT - sum(units) + units[-1],
        state=moments + average_bytes(config, weights),
        stack=stack,
        sequence=bytes_per_sequence(config, task, batches, runtime),
        cast=CAST if runtime.dtype != torch.float32 and config.parallel.gather == "float32" else 0,
    )


def check_portion(config: RunConfig, task: Task, batches: Batches, group: Group) -> None:
    """Compare the needs of each process with its free memory, before anything large is allocated.

    Raises:
        UserError: in all processes, with the setting that would fit.
    """
    device, batch = group.device(config.runtime.device), config.batch
    sharing = 1 if device.startswith("cuda") else group.local_size
    rows = batch.sequences // group.size
    if not any(group.gather(not plainly_fits(config, sharing, min(batch.micro, rows)))):
        return

    footprint = Footprint(
        **group.broadcast(asdict(measure_footprint(config, task, batches, device)) if group.first else None)
    )
    free = [bytes_ for bytes_ in group.gather(free_memory(device)) if bytes_ is not None]
    if not free:
        return

    mode, copies = config.parallel.resolve(group.size, group.hosts)
    layout, micro = Parallelism(cast(Mode, mode), group.size, copies), min(batch.micro, rows)
    need, available = (
        footprint.per_process(layout, micro, rows // micro, config.parallel.reduce == "every"),
        min(free) // sharing,
    )
    if need <= available:
        return

    where = f"on each of {group.size} devices" if sharing == 1 else f"for each of the {sharing} processes of a host"
    advice = next(fitting_settings(config, footprint, layout, available), "")
    if not advice:
        advice = "no mode and no size of a pass fits: use more devices or hosts with parallel.mode=fsdp, or a smaller "
        advice += "model, such as fewer --set model.layers"
    raise UserError(
        f"this run needs about {format_bytes(need)} of memory {where} (parallel.mode = {mode}) and "
        f"{format_bytes(available)} is free: "
        f"{format_bytes(need - footprint.sequence * micro)} for weights, gradients and optimiser, "
        f"{format_bytes(footprint.sequence * micro)} for a pass of {micro} sequences; {advice}"
    )


def fitting_settings(config: RunConfig, footprint: Footprint, layout: Parallelism, available: int) -> Iterator[str]:
    """Settings that fit, the smallest change first: fewer sequences in a pass, then fsdp, then gradients reduced after
    every pass."""
    rows, smallest = config.batch.sequences // layout.processes, (config.batch.ramp_from or config.batch.sequences)
    current, reduce_every = min(config.batch.micro, rows), config.parallel.reduce == "every"
    fewer = [n for n in range(current - 1, 0, -1) if rows % n == 0 and (smallest // layout.processes) % n == 0]
    for n in fewer:
        if footprint.per_process(layout, n, rows // n, reduce_every) <= available:
            yield f"use --set batch.micro_sequences={n}"

    if config.average.entry.on:
        return  # an average needs all weights in every process

    divided, settings = layout, ""
    if layout.mode != "fsdp":
        divided = Parallelism("fsdp", layout.processes)
        settings = " parallel.mode=fsdp" + (" parallel.replicas=0" if config.parallel.replicas else "")
    for reduce in ("", " parallel.reduce=every"):
        for n in (current, *fewer):
            if footprint.per_process(divided, n, rows // n, reduce_every or bool(reduce)) <= available:
                yield f"use --set{settings}{reduce}" + (f" batch.micro_sequences={n}" if n != current else "")
