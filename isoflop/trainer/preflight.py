"""Before the first step: does it fit in memory, and does the largest batch go through?

    plainly fits? else
    estimate ─> more than is free? refused, with the setting that fits       nothing has been allocated yet
    dry batch ─> forward and backward of the largest shape, no update        what fails, fails now and not in an hour

The estimate: weights, gradients and the optimiser's state are counted on the meta device. What the backward pass needs
is measured on models of the same kind with at most four layers, on one and two sequences, and carried on linearly in
layers and sequences. A run resumed on a smaller machine is refused likewise. Where several processes share a model,
portion.py has what each of them holds; the dry batch is taken by all together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from isoflop.data.loader import Batches
from isoflop.errors import UserError
from isoflop.model.build import build_model
from isoflop.model.count import parameters
from isoflop.optim.build import clip_gradients
from isoflop.optim.config import OptimConfig
from isoflop.optim.groups import split
from isoflop.parallel.state import generator_tensors, set_generators
from isoflop.runtime import Runtime, free_memory
from isoflop.trainer.config import RunConfig
from isoflop.trainer.state import RunState
from isoflop.trainer.step import Statistics, discard_step, forward_backward
from isoflop.trainer.task import Task

FLOAT = 4  # bytes: weights, gradients and moments are float32
GENEROUS = 64  # times the width: what a layer keeps of a token, half of it or less in every block that we have
SPARE = 1.1  # of what the backward pass keeps, for what it holds besides for a moment


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs.

    Attributes:
        fixed: weights, gradients, the optimiser's state, and what Muon's step works on.
        sequence: what the backward pass needs for one sequence in a pass.
        copy: of a checkpoint that is being written, in main memory.
    """

    fixed: int
    sequence: int
    copy: int

    def total(self, sequences: int) -> int:
        """With so many sequences in a pass, all in one memory."""
        return self.fixed + self.sequence * sequences + self.copy


def plainly_fits(config: RunConfig, sharing: int = 1, rows: int = 0) -> bool:
    """Whether a guess that is generous for any blocks is less than half of what is free. Nothing need be tried out
    then, which would take a second of every start, and memory of its own.

    Args:
        sharing: processes that have this memory together.
        rows: sequences in a pass of each; 0: of the batch's passes.
    """
    free, model = free_memory(config.runtime.device), config.model
    weights = FLOAT * parameters(model, config.task).total
    wide = GENEROUS * model.d_model + model.heads * model.context  # numbers kept a token and layer
    kept = FLOAT * (rows or config.batch.micro) * model.context * (model.layers + model.encoder_layers + 1) * wide
    return free is not None and sharing * (8 * weights + kept) < free / 2


def estimate(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> Memory:
    """The memory of a run, before anything large is made. Draws from torch's generators."""
    with torch.device("meta"):
        model = build_model(config.task, config.model)
    task.prepare(model)
    weights, moments, stack = counted(model, config.optim)
    return Memory(
        fixed=2 * weights + moments + 3 * stack,
        sequence=for_a_sequence(config, task, batches, runtime),
        copy=weights + moments if config.every.background else 0,
    )


def counted(model: Any, optim: OptimConfig) -> tuple[int, int, int]:
    """Bytes of a model's weights, of its optimisers' state, and of the matrices that a step works on at once."""
    entry, state = optim.entry, 0
    stacks: dict[torch.Size, int] = {}
    for group in split(model):
        for tensor in group.parameters.values():
            state += entry.state_bytes(group.name) * tensor.numel()
            if entry.stacks(group.name):
                stacks[tensor.shape] = stacks.get(tensor.shape, 0) + FLOAT * tensor.numel()
    return FLOAT * sum(tensor.numel() for tensor in model.parameters()), state, max(stacks.values(), default=0)


def for_a_sequence(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> int:
    """Bytes that the backward pass needs for one sequence of the largest shape."""
    return round(SPARE * kept_of_a_sequence(config, task, batches, runtime))


def kept_of_a_sequence(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> float:
    """Bytes that are kept for the backward pass of one sequence of the largest shape, beyond what any pass keeps."""
    layers = config.model.layers + config.model.encoder_layers
    few, more = (min(count, config.model.layers) for count in (2, 4))
    found = []
    for count in dict.fromkeys((few, more)):
        model = replace(config.model, layers=count, encoder_layers=min(count, config.model.encoder_layers))
        with runtime.device:
            small = build_model(config.task, model)
        task.prepare(small)
        fewest = 1 if config.model.norm.name != "batch" else 2  # statistics over one sequence are none
        one, two = (kept_bytes(small, task, batches.largest(rows), runtime) for rows in (fewest, 2 * fewest))
        found.append((model.layers + model.encoder_layers, (two - one) / fewest))
    (depth, bytes_), (further, more_bytes) = found[0], found[-1]
    if further == depth:
        block = bytes_ / depth  # all of them were there, or the encoder alone is deeper
    else:
        block = (more_bytes - bytes_) / (further - depth)
    if config.runtime.recompute:  # of each block its input, and of one at a time the rest
        return bytes_ - depth * block + block + layers * FLOAT * config.model.context * config.model.d_model
    return bytes_ + (layers - depth) * block


def kept_bytes(model: Any, task: Task, batch: Sequence[torch.Tensor], runtime: Runtime) -> int:
    """What a forward pass of `batch` keeps for its backward pass, in bytes."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), runtime.autocast():
        loss = task.loss(model, *(tensor.to(runtime.device) for tensor in batch))
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    del loss
    return sum(bytes_ for place, bytes_ in kept.items() if place not in own)


def check_memory(config: RunConfig, need: Memory, device: str) -> None:
    """Compare with what is free: on the device, and the checkpoint's copy in main memory.

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


def way_out(config: RunConfig, need: Memory, free: int) -> str:
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


def shown(bytes_: float) -> str:
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:,.1f} MB"


def dry_batch(state: RunState) -> None:
    """One pass of the largest shape, forward and backward, without an update. Weights, running statistics and torch's
    generators are afterwards what they were, bit for bit.

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
