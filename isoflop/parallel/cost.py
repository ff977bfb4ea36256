"""The cost of training one model with several processes: bytes to send per step, and bytes to hold. No torch.

With N processes and bandwidth-optimal collectives, such as rings (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"), each process sends, of a tensor of B bytes,

    all-gather       (N - 1) / N B     every process ends with the full tensor
    reduce-scatter   (N - 1) / N B     every process ends with one part of the sum
    all-reduce     2 (N - 1) / N B     a reduce-scatter, then an all-gather

No algorithm sends less: in an all-gather each process must receive the N - 1 parts that it lacks, and as much is sent
as is received. In-network reduction (NVLink and InfiniBand SHARP), where switches do part of it, is not modelled.

    ddp      the gradients are all-reduced; every process holds the full state
    fsdp     parameters, gradients and optimiser state are split into N shards (ZeRO-3, Rajbhandari et al. 2019,
             1910.02054, section 7); a unit's parameters are all-gathered before its forward pass, and again before
             its backward pass if they were freed between the two; its gradients are reduce-scattered
    hsdp     fsdp within a shard group of N / R processes, and an all-reduce of the own shard's gradients across the R
             replicas (Zhao et al. 2023, 2304.11277, section 3.2.2)

Not counted: traffic that does not grow with the model (the loss, the gradient's norm, barriers), traffic outside the
steps (the first broadcast, checkpoints), and padding of tensors whose first dimension N does not divide.
"""

from dataclasses import dataclass
from typing import Literal

from isoflop.errors import UserError

Mode = Literal["none", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Parallelism:
    """The division of the training of one model over `processes`.

    Attributes:
        replicas: copies of the model: as many as processes in ddp, one in fsdp, between the two in hsdp. 0: chosen by
            the mode; hsdp needs a number.

    Raises:
        UserError: for an inconsistent combination.
    """

    mode: Mode
    processes: int
    replicas: int = 0

    def __post_init__(self) -> None:
        fixed = {"none": 1, "ddp": self.processes, "fsdp": 1}
        if self.processes < 1:
            raise UserError(f"{self.processes} is not a number of processes; give at least 1")
        if self.mode == "none" and self.processes > 1:
            raise UserError(f"mode none is for one process, not {self.processes}; choose ddp, fsdp or hsdp")
        replicas = self.replicas or fixed.get(self.mode, 0)
        if self.mode in fixed and replicas != fixed[self.mode]:
            raise UserError(
                f"{replicas} replicas do not fit {self.mode} on {self.processes} processes; omit the replicas"
            )
        if replicas < 1 or self.processes % replicas:
            raise UserError(f"{replicas} replicas do not divide {self.processes} processes; choose a divisor")
        object.__setattr__(self, "replicas", replicas)

    @property
    def shards(self) -> int:
        """The number of shards of the model."""
        return self.processes // self.replicas


@dataclass(frozen=True)
class Traffic:
    """The least bytes that one process sends per optimiser step.

    Attributes:
        gathered: parameters, within the shard group.
        scattered: gradients, within the shard group.
        reduced: gradients, across the replicas: all of them in ddp, the own shard's in hsdp.
    """

    gathered: float
    scattered: float
    reduced: float

    @property
    def total(self) -> float:
        return self.gathered + self.scattered + self.reduced


def traffic(
    layout: Parallelism,
    parameters: float,
    *,
    parameter_bytes: float = 4,
    reduce_bytes: float = 4,
    passes: int = 1,
    reshard: bool = True,
    kept: float = 0,
    reduce_every_pass: bool = False,
) -> Traffic:
    """The least number of bytes that a process must send per optimiser step.

    Args:
        parameters: trainable parameters of the model; a tied weight counts once.
        parameter_bytes: per parameter when gathered: 4 in float32, 2 in bfloat16.
        reduce_bytes: per gradient when reduced.
        passes: forward and backward passes of this process per step (gradient accumulation).
        reshard: a unit's parameters are freed after its forward pass and gathered again before its backward pass;
            else each pass gathers them once.
        kept: parameters that are not freed between forward and backward: those of FSDP2's root unit.
        reduce_every_pass: gradients are reduced after every pass, not only after the last. Then fsdp holds no unsharded
            gradients; ddp has no advantage.
    """
    gathers = passes * ((2 * parameters - kept) if reshard else parameters)
    reductions = passes if reduce_every_pass else 1

    sent_share = part(layout.shards)
    gradient = reductions * parameters * reduce_bytes
    return Traffic(
        gathered=sent_share * gathers * parameter_bytes,
        scattered=sent_share * gradient,
        reduced=2 * part(layout.replicas) * gradient / layout.shards,
    )


def part(processes: int) -> float:
    """The share of a tensor that a process sends in an all-gather or a reduce-scatter."""
    return (processes - 1) / processes


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes on one process, at the peak of a step.

    Attributes:
        parameters: the process's own, all or one shard.
        gradients: the same share of them.
        optimizer: state.
        gathered: gathered units with their gradients; and casts of parameters.
        activations: kept by the forward pass for the backward pass.
    """

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer + self.gathered + self.activations


def memory(
    layout: Parallelism,
    parameters: float,
    *,
    largest_unit: float,
    activations: float,
    parameter_bytes: float = 4,
    compute_bytes: float = 4,
    reduce_bytes: float = 4,
    state_bytes: float = 8,
    kept: float = 0,
    cast_bytes: float = 0,
    reshard: bool = True,
    whole_gradients: bool = False,
) -> ProcessMemory:
    """The memory of one process. Not included: the CUDA context, NCCL's buffers, fragmentation of the allocator.

    Args:
        largest_unit: parameters of the largest unit, embedding and head included: while one unit is computed the next
            is being gathered, so that two are unsharded, and the gradients of one.
        activations: bytes, from `activation_bytes` or a measurement.
        parameter_bytes: per parameter when stored and updated, and per gradient.
        compute_bytes: per parameter in a matrix product: 2 in bfloat16.
        reduce_bytes: per gradient when reduced.
        state_bytes: of the optimiser's state per parameter: 8 for AdamW's two moments in float32.
        kept: as in `traffic`, in addition to the largest unit.
        cast_bytes: per parameter, of a copy that autocast makes and the backward pass needs again, so that the copy of
            the whole model is held in any mode: 2 with bfloat16 and parameters that are gathered in float32.
        reshard: as in `traffic`; without it every unit stays unsharded from forward to backward.
        whole_gradients: gradients accumulate unsharded over the passes.
    """
    own = parameters / layout.shards

    if layout.shards > 1:
        unsharded = min(2 * largest_unit + kept, parameters) if reshard else parameters
        gathered = unsharded * compute_bytes + (parameters if whole_gradients else largest_unit) * reduce_bytes
        gathered += parameters * cast_bytes
    else:
        gathered = parameters * (cast_bytes or (compute_bytes if compute_bytes < parameter_bytes else 0))

    return ProcessMemory(
        parameters=own * parameter_bytes,
        gradients=own * parameter_bytes,
        optimizer=own * state_bytes,
        gathered=gathered,
        activations=activations,
    )


def activation_bytes(tokens: float, layers: int, d_model: int, *, recompute: bool = False) -> float:
    """Activations that the blocks of a plain GPT keep for the backward pass, in 16-bit: 34 L D bytes per token, or
    2 L D + 34 D with recomputation, which keeps only each block's input (Korthikanti et al. 2022, 2205.05198, equation
    1 and table 2, without the scores, which fused attention never writes). Logits are not included."""
    per_block = 34 * d_model * tokens
    return 2 * layers * d_model * tokens + per_block if recompute else layers * per_block
