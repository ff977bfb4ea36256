"""Checks before the first step: the run fits in memory, and the largest batch succeeds.

    plainly fits? otherwise
    estimate ─> more than is free? refuse, naming a setting that fits      nothing has been allocated yet
    dry batch ─> forward and backward of the largest shape, no update      a failure occurs now, not after an hour

The same holds for a run resumed on a smaller machine. portion.py has the check for several processes; they take the dry
batch together.
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
from isoflop.trainer.memory.estimate import RunMemory, estimate, format_bytes, plainly_fits
from isoflop.trainer.memory.portion import check_portion
from isoflop.trainer.state import RunState
from isoflop.trainer.step import Statistics, discard_step, forward_backward
from isoflop.trainer.task import Task


def require_memory(config: RunConfig, task: Task, batches: Batches, group: Group) -> None:
    """Refuse a run that does not fit, in all processes, before anything large is allocated.

    Raises:
        UserError: naming a setting that fits.
    """
    if not group.alone:
        check_portion(config, task, batches, group)
    elif not plainly_fits(config):
        runtime = make_runtime(config.runtime.device, config.runtime.dtype, config.runtime.threads)
        check_memory(config, estimate(config, task, batches, runtime), config.runtime.device)


def check_memory(config: RunConfig, need: RunMemory, device: str) -> None:
    """Compare the need with the free memory: on the device, and in main memory for a checkpoint's copy.

    Raises:
        UserError: naming a setting that fits.
    """
    free, free_main = free_memory(device), free_memory("cpu")
    on_device = need if device == "cpu" else replace(need, copy=0)
    if free is not None and on_device.total(config.batch.micro) > free:
        raise UserError(
            f"this run needs about {format_bytes(on_device.total(config.batch.micro))} of memory on {device} and "
            f"{format_bytes(free)} is free: {format_bytes(need.fixed)} for weights, gradients and optimiser, "
            f"{format_bytes(need.sequence * config.batch.micro)} for a pass of {config.batch.micro} sequences"
            + (f", {format_bytes(on_device.copy)} for a checkpoint's copy" if on_device.copy else "")
            + f"; {fitting_setting(config, on_device, free)}"
        )
    if free_main is not None and device != "cpu" and need.copy > free_main:
        raise UserError(
            f"a checkpoint's copy needs {format_bytes(need.copy)} of main memory and {format_bytes(free_main)} is "
            "free; use --set every.background=false"
        )


def fitting_setting(config: RunConfig, need: RunMemory, free: int) -> str:
    """The setting that fits with the most sequences in a pass, in words."""
    batch = config.batch
    divisors = [
        rows
        for rows in range(batch.micro - 1, 0, -1)
        if batch.sequences % rows == 0 and (batch.ramp_from or batch.sequences) % rows == 0
    ]
    for extra, memory in (("", need), (" every.background=false", replace(need, copy=0))):
        for rows in divisors:
            if memory.total(rows) <= free:
                return f"use --set batch.micro_sequences={rows}{extra}"
        if extra and memory.total(batch.micro) <= free:
            return f"use --set{extra}"
    return "no size of a pass fits: use a smaller model, such as fewer --set model.layers, or a larger machine"


def dry_batch(state: RunState) -> None:
    """One forward and backward pass of the largest shape, without an update. Weights, running statistics and torch's
    generators are restored, bit for bit.

    Raises:
        UserError: if the device runs out of memory, naming a setting that may fit.
    """
    generators = generator_tensors()
    statistics = Statistics(state.model)
    statistics.save()

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
        clip_gradients(state.model, state.config.optim.clip, state.layout.global_norm)
    except torch.OutOfMemoryError as error:
        half = next((n for n in range(rows // 2, 0, -1) if state.config.batch.sequences % n == 0), 1)
        reason = str(error).partition(". ")[0]
        raise UserError(f"a pass of {rows} sequences: {reason}; use --set batch.micro_sequences={half}") from None
    finally:
        discard_step(state.optimizers, statistics)
        set_generators(generators)
