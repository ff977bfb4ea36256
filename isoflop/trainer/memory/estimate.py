"""Estimates the memory of a run before anything large is allocated.

Weights, gradients and the optimiser's state are counted on the meta device. The activations that the backward pass
needs are measured on models of the same kind with at most four layers, on one and two sequences, and extrapolated
linearly in layers and sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from isoflop.data.loader import Batches
from isoflop.model.build import build_model
from isoflop.model.count import parameters
from isoflop.optim.config import OptimConfig
from isoflop.optim.groups import split
from isoflop.runtime import Runtime, free_memory
from isoflop.trainer.config import RunConfig
from isoflop.trainer.task import Task

FLOAT = 4  # bytes: weights, gradients and moments are float32
GENEROUS = 64  # times the width: an upper bound of what a layer keeps per token; every block of ours needs half or less
SPARE = 1.1  # factor on the kept activations, for temporary tensors of the backward pass


@dataclass(frozen=True)
class RunMemory:
    """Bytes that a run needs.

    Attributes:
        fixed: weights, gradients, the optimiser's state, and the temporary stacks of Muon's step.
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
    """Whether an upper bound for any blocks is less than half of the free memory. Then no trial is needed, which would
    take a second of every start, and memory itself.

    Args:
        sharing: processes that share this memory.
        rows: sequences in a pass of each process; 0: as configured.
    """
    free = free_memory(config.runtime.device)
    return free is not None and sharing * guess(config, rows) < free / 2


def guess(config: RunConfig, rows: int = 0, fixed: bool = False) -> int:
    """An upper bound of a run's bytes, for any blocks.

    Args:
        rows: sequences in a pass; 0: as configured.
        fixed: only what does not depend on the number of sequences: weights and gradients.
    """
    model = config.model
    weights = FLOAT * parameters(model, config.task).total
    if fixed:
        return 2 * weights
    wide = GENEROUS * model.d_model + model.heads * model.context  # numbers kept per token and layer
    kept = FLOAT * (rows or config.batch.micro) * model.context * (model.layers + model.encoder_layers + 1) * wide
    return 8 * weights + kept


def estimate(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> RunMemory:
    """The memory of a run, before anything large is allocated. Uses torch's random generators."""
    with torch.device("meta"):
        model = build_model(config.task, config.model)
    task.prepare(model)
    weights, moments, stack = count_bytes(model, config.optim)
    return RunMemory(
        fixed=2 * weights + moments + 3 * stack,
        sequence=bytes_per_sequence(config, task, batches, runtime),
        copy=weights + moments if config.every.background else 0,
    )


def count_bytes(model: Any, optim: OptimConfig) -> tuple[int, int, int]:
    """Bytes of a model's weights, of its optimisers' state, and of the largest stack of matrices in a step."""
    entry, state = optim.entry, 0
    stacks: dict[torch.Size, int] = {}
    for group in split(model):
        for tensor in group.parameters.values():
            state += entry.state_bytes(group.name) * tensor.numel()
            if entry.stacks(group.name):
                stacks[tensor.shape] = stacks.get(tensor.shape, 0) + FLOAT * tensor.numel()
    return FLOAT * sum(tensor.numel() for tensor in model.parameters()), state, max(stacks.values(), default=0)


def bytes_per_sequence(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> int:
    """Bytes that the backward pass needs per sequence of the largest shape."""
    return round(SPARE * kept_per_sequence(config, task, batches, runtime))


def kept_per_sequence(config: RunConfig, task: Task, batches: Batches, runtime: Runtime) -> float:
    """Bytes that the forward pass keeps per sequence of the largest shape, without what any pass keeps."""
    layers = config.model.layers + config.model.encoder_layers
    few, more = (min(count, config.model.layers) for count in (2, 4))
    found = []
    for count in dict.fromkeys((few, more)):
        model = replace(config.model, layers=count, encoder_layers=min(count, config.model.encoder_layers))
        with runtime.device:
            small = build_model(config.task, model)
        task.prepare(small)
        statistics = any(getattr(module, "keeps_statistics", False) for module in small.modules())
        fewest = 2 if statistics else 1  # there are no statistics over one sequence
        one, two = (kept_bytes(small, task, batches.largest(rows), runtime) for rows in (fewest, 2 * fewest))
        found.append((model.layers + model.encoder_layers, (two - one) / fewest))

    (depth, bytes_), (further, more_bytes) = found[0], found[-1]
    if further == depth:
        block = bytes_ / depth  # the trial had all layers, or only the encoder is deeper
    else:
        block = (more_bytes - bytes_) / (further - depth)
    if config.runtime.recompute:  # the input of each block, and the activations of one block at a time
        return bytes_ - depth * block + block + layers * FLOAT * config.model.context * config.model.d_model
    return bytes_ + (layers - depth) * block


def kept_bytes(model: Any, task: Task, batch: Sequence[torch.Tensor], runtime: Runtime) -> int:
    """Bytes that a forward pass of `batch` keeps for its backward pass."""
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


def shown(bytes_: float) -> str:
    return f"{bytes_ / 1e9:,.1f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:,.1f} MB"
