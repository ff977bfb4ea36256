"""Estimates the memory of a run before anything large is allocated.

Weights, gradients and the optimiser's state are counted on the meta device. The activations that are saved for the
backward pass are measured on models of the same kind with at most four layers, on one and two sequences, and
extrapolated linearly in layers and sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from isoflop.data.loader import Batches
from isoflop.model.build import build_model
from isoflop.model.count import parameters
from isoflop.model.fused import fuse
from isoflop.optim.config import OptimConfig
from isoflop.optim.groups import split
from isoflop.runtime import Runtime, free_memory
from isoflop.trainer.begin import uses_kernels
from isoflop.trainer.config import RunConfig
from isoflop.trainer.task import Task

FLOAT = 4  # bytes: weights, gradients and moments are float32
WIDTHS_PER_TOKEN = (
    64  # times the width: an upper bound of what a layer keeps per token; every block of ours needs half or less
)
TEMPORARY = 1.1  # factor on the kept activations, for temporary tensors of the backward pass


@dataclass(frozen=True)
class RunMemory:
    """Bytes that a run needs.

    Attributes:
        fixed: weights and their average, gradients, the optimiser's state, and the temporary stacks of Muon's step.
        sequence: activations per sequence in a pass.
        copy: of a checkpoint that is being written, in main memory.
    """

    fixed: int
    sequence: int
    copy: int

    def total(self, sequences: int) -> int:
        """The total with `sequences` sequences in a pass, all in one memory."""
        return self.fixed + self.sequence * sequences + self.copy


def plainly_fits(config: RunConfig, sharing: int = 1, rows: int = 0) -> bool:
    """Whether an upper bound that holds for all blocks is less than half of the free memory. Then no trial is needed,
    which would take memory and a second of every start.

    Args:
        sharing: number of processes that share this memory.
        rows: sequences in a pass of each process; 0: as configured.
    """
    free = free_memory(config.runtime.device)
    return free is not None and sharing * upper_bound_bytes(config, rows) < free / 2


def upper_bound_bytes(config: RunConfig, rows: int = 0, fixed: bool = False) -> int:
    """An upper bound of the bytes that a run needs, whatever its blocks.

    Args:
        rows: sequences in a pass; 0: as configured.
        fixed: only weights and gradients, which do not depend on the number of sequences.
    """
    model = config.model
    weights = FLOAT * parameters(model, config.task).total
    if fixed:
        return 2 * weights
    values_per_layer = (
        WIDTHS_PER_TOKEN * model.d_model + model.heads * model.context
    )  # numbers kept per token and layer
    activations = (
        FLOAT
        * (rows or config.batch.micro)
        * model.context
        * (model.layers + model.encoder_layers + 1)
        * values_per_layer
    )
    average = 2 * weights if config.average.entry.on else 0  # itself, and its part of a checkpoint's copy
    return 8 * weights + average + activations


def estimate(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> RunMemory:
    """The memory of a run, before anything large is allocated. Uses torch's random generators."""
    with torch.device("meta"):
        model = build_model(config.task, config.model)
    task.prepare(model)
    weights, moments, stack = count_bytes(model, config.optim)
    moments += average_bytes(config, weights)
    return RunMemory(
        fixed=2 * weights + moments + 3 * stack,
        sequence=bytes_per_sequence(config, task, batches, runtime),
        copy=weights + moments if config.every.background else 0,
    )


def count_bytes(model: Any, optim: OptimConfig) -> tuple[int, int, int]:
    """Bytes of a model's weights, of its optimisers' state, and of the largest stack of matrices in Muon's step."""
    entry, state = optim.entry, 0
    stacks: dict[torch.Size, int] = {}
    for group in split(model):
        for tensor in group.parameters.values():
            state += entry.state_bytes(group.name) * tensor.numel()
            if entry.stacks(group.name):
                stacks[tensor.shape] = stacks.get(tensor.shape, 0) + FLOAT * tensor.numel()
    return FLOAT * sum(tensor.numel() for tensor in model.parameters()), state, max(stacks.values(), default=0)


def average_bytes(config: RunConfig, weights: int) -> int:
    """Bytes of the average of the weights, given theirs."""
    return weights if config.average.entry.on else 0


def bytes_per_sequence(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> int:
    """Bytes of activations per sequence of the largest shape, with temporary tensors of the backward pass."""
    return round(TEMPORARY * activation_bytes_per_sequence(config, task, batches, runtime))


def activation_bytes_per_sequence(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> float:
    """Bytes that the forward pass saves per sequence of the largest shape. What does not depend on the number of
    sequences is not counted."""
    layers = config.model.layers + config.model.encoder_layers
    shallow, deep = (min(count, config.model.layers) for count in (2, 4))
    measured = []
    for count in dict.fromkeys((shallow, deep)):
        trial = replace(config.model, layers=count, encoder_layers=min(count, config.model.encoder_layers))
        with runtime.device:
            small = build_model(config.task, trial)
        task.prepare(small)
        if uses_kernels(config):
            fuse(small)
        statistics = any(getattr(module, "keeps_statistics", False) for module in small.modules())
        fewest = 2 if statistics else 1  # there are no statistics over one sequence
        first, second = (saved_bytes(small, task, batches.largest(rows), runtime) for rows in (fewest, 2 * fewest))
        measured.append((trial.layers + trial.encoder_layers, (second - first) / fewest))

    (shallow_layers, shallow_bytes), (deep_layers, deep_bytes) = measured[0], measured[-1]
    if deep_layers == shallow_layers:
        block = shallow_bytes / shallow_layers  # the trial had all layers, or only the encoder is deeper
    else:
        block = (deep_bytes - shallow_bytes) / (deep_layers - shallow_layers)
    if config.runtime.recompute:  # the input of each block, and the activations of one block at a time
        return (
            shallow_bytes
            - shallow_layers * block
            + block
            + layers * FLOAT * config.model.context * config.model.d_model
        )
    return shallow_bytes + (layers - shallow_layers) * block


def saved_bytes(model: Any, task: Task, batch: Sequence[torch.Tensor], runtime: Runtime) -> int:
    """Bytes that a forward pass of `batch` saves for the backward pass, without the parameters."""
    by_storage: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        by_storage[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), runtime.autocast():
        loss = task.loss(model, *(tensor.to(runtime.device) for tensor in batch))
    parameters = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    del loss
    return sum(bytes_ for pointer, bytes_ in by_storage.items() if pointer not in parameters)


def format_bytes(bytes_: float) -> str:
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:,.1f} MB"
