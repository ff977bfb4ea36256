"""Checks before the first step: the run fits in memory, and the largest batch succeeds.

    plainly fits? else
    estimate ─> more than is free? refused, with the setting that fits       nothing has been allocated yet
    dry batch ─> forward and backward of the largest shape, no update        a failure comes now and not in an hour

A run resumed on a smaller machine is refused likewise. portion.py has the check for several processes; all of them take
the dry batch together.
"""

from dataclasses import replace

import torch

from isoflop.data.loader import Batches
from isoflop.errors import UserError
from isoflop.optim.build import clip_gradients
from isoflop.parallel.mesh import Group
from isoflop.parallel.state import generator_tensors, set_generators
from isoflop.runtime import free_memory, make_runtime
from isoflop.trainer.config import RunConfig
from isoflop.trainer.memory.estimate import RunMemory, estimate, plainly_fits, shown
from isoflop.trainer.memory.portion import check_portion
from isoflop.trainer.state import RunState
from isoflop.trainer.step import Statistics, discard_step, forward_backward
from isoflop.trainer.task import Task


def require_memory(config: RunConfig, task: Task, batches: Batches, group: Group) -> None:
    """Refuse a run that does not fit, in all processes, before anything large is allocated.

    Raises:
        UserError: with the setting that would fit.
    """
    if not group.alone:
        check_portion(config, task, batches, group)
    elif not plainly_fits(config):
        runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
        check_memory(config, estimate(config, task, batches, runtime), config.runtime.device)


def check_memory(config: RunConfig, need: RunMemory, device: str) -> None:
    """Compare the need with the free memory: on the device, and in main memory for the checkpoint's copy.

    Raises:
        UserError: with the setting that would fit.
    """
    free, free_here = free_memory(device), free_memory("cpu")
    on_device = need if device == "cpu" else replace(need, copy=0)
    if free is not None and on_device.total(config.batch.micro) > free:
        raise UserError(
            f"this run needs about {shown(on_device.total(config.batch.micro))} of memory on {device} and "
            f"{shown(free)} is free: {shown(need.fixed)} for weights, gradients and optimiser, "
            f"{shown(need.sequence * config.batch.micro)} for a pass of {config.batch.micro} sequences"
            + (f", {shown(on_device.copy)} for a checkpoint's copy" if on_device.copy else "")
            + f"; {way_out(config, on_device, free)}"
        )
    if free_here is not None and device != "cpu" and need.copy > free_here:
        raise UserError(
            f"a checkpoint's copy needs {shown(need.copy)} of main memory and {shown(free_here)} is free; "
            "use --set every.background=false"
        )


def way_out(config: RunConfig, need: RunMemory, free: int) -> str:
    """The setting that fits, with the most sequences in a pass."""
    batch = config.batch
    divisors = [
        rows
        for rows in range(batch.micro - 1, 0, -1)
        if batch.sequences % rows == 0 and (batch.ramp_from or batch.sequences) % rows == 0
    ]
    for more, memory in (("", need), (" every.background=false", replace(need, copy=0))):
        for rows in divisors:
            if memory.total(rows) <= free:
                return f"use --set batch.micro_sequences={rows}{more}"
        if more and memory.total(batch.micro) <= free:
            return f"use --set{more}"
    return "no size of a pass fits: use a smaller model, such as fewer --set model.layers, or a larger machine"


def dry_batch(state: RunState) -> None:
    """One forward and backward pass of the largest shape, without an update. Weights, running statistics and torch's
    generators are restored, bit for bit.

    Raises:
        UserError: if the device runs out of memory, with the setting that may fit.
    """
    generators = generator_tensors()
    statistics = Statistics(state.model)
    statistics.keep()

    rows = min(state.config.batch.micro, state.config.batch.sequences // state.layout.group.size)
    try:
        forward_backward(
            state.model,
            state.task,
            [tensor.to(state.runtime.device) for tensor in state.batches.largest(rows)],
            micro=rows,
            runtime=state.runtime,
            layout=state.layout,
        )
        clip_gradients(state.model, state.config.optim.clip, state.layout.whole)
    except torch.OutOfMemoryError as error:
        half = next((n for n in range(rows // 2, 0, -1) if state.config.batch.sequences % n == 0), 1)
        reason = str(error).partition(". ")[0]
        raise UserError(f"a pass of {rows} sequences: {reason}; use --set batch.micro_sequences={half}") from None
    finally:
        discard_step(state.optimizers, statistics)
        set_generators(generators)
