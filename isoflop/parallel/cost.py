"""What sharing one model among processes costs: bytes to send in a step, and bytes to hold. Plain numbers, no torch.

With N processes and collectives that move no byte twice (rings do; Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"), each process sends, of a tensor of B bytes,

    all-gather       (N - 1) / N B     everyone ends with the whole
    reduce-scatter   (N - 1) / N B     everyone ends with one part of the sum
    all-reduce     2 (N - 1) / N B     the one and then the other

No algorithm sends less: in an all-gather each process must receive the N - 1 parts that it lacks, and as much is sent
as is received. In-network reduction (NVLink and InfiniBand SHARP) is left out: the switches then send in our place.

    ddp      the gradients are all-reduced; everyone holds everything
    fsdp     parameters, gradients and optimiser state are cut into N shards (ZeRO-3, Rajbhandari et al. 2019,
             1910.02054, section 7); a unit's parameters are all-gathered before its forward pass, and again before
             its backward pass if they were let go between the two; its gradients are reduce-scattered
    hsdp     fsdp within a shard group of N / R processes, and an all-reduce of the own shard's gradients across the R
             replicas (Zhao et al. 2023, 2304.11277, section 3.2.2)

Not counted, since they do not grow with the model: the loss, the gradient's norm, barriers. Nor what is no part of a
step: the first broadcast, checkpoints. Nor padding: a tensor whose first dimension N does not divide is padded.
"""

from dataclasses import dataclass
from typing import Literal

from isoflop.errors import UserError

Mode = Literal["none", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True)
class Parallelism:
    """How `processes` share one model.

    Attributes:
        replicas: whole copies of the model, of which hsdp has between 1 and all; as many as processes in ddp, and one
            in fsdp. 0: what the mode says, and in hsdp the caller must.

    Raises:
        UserError: for a combination that makes no sense.
    """

    mode: Mode
    processes: int
    replicas: int = 0

    def __post_init__(self) -> None:
        fixed = {"none": 1, "ddp": self.processes, "fsdp": 1}
        if self.processes < 1:
            raise UserError(f"{self.processes} processes cannot train anything; give at least 1")
        if self.mode == "none" and self.processes > 1:
            raise UserError(f"mode none is for one process, not {self.processes}; choose ddp, fsdp or hsdp")
        replicas = self.replicas or fixed.get(self.mode, 0)
        if self.mode in fixed and replicas != fixed[self.mode]:
            raise UserError(
                f"{replicas} replicas do not go with {self.mode} on {self.processes} processes; leave it out"
            )
        if replicas < 1 or self.processes % replicas:
            raise UserError(f"{replicas} replicas do not divide {self.processes} processes; choose a divisor")
        object.__setattr__(self, "replicas", replicas)

    @property
    def shards(self) -> int:
        """Into how many parts the model is cut."""
        return self.processes // self.replicas


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends in one optimiser step, at least.

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
    """The least that a process must send for one optimiser step.

    Args:
        parameters: trainable ones of the model, a tied weight once.
        parameter_bytes: of a parameter as it is gathered: 4 in float32, 2 in bfloat16.
        reduce_bytes: of a gradient as it is summed.
        passes: forward and backward passes of this process in the step; gradients accumulate over them.
        reshard: a unit's parameters are let go after its forward pass and gathered again before its backward pass;
            else each pass gathers them once.
        kept: parameters that are not let go between forward and backward all the same: FSDP2's root unit.
        reduce_every_pass: gradients are summed over the processes after every pass and not after the last alone. It
            saves fsdp from holding whole gradients, and ddp nothing.
    """
    gathers = passes * ((2 * parameters - kept) if reshard else parameters)
    reductions = passes if reduce_every_pass else 1
    whole = part(layout.shards)
    gradient = reductions * parameters * reduce_bytes
    return Traffic(
        gathered=whole * gathers * parameter_bytes,
        scattered=whole * gradient,
        reduced=2 * part(layout.replicas) * gradient / layout.shards,
    )


def part(processes: int) -> float:
    """What a process sends of a tensor in an all-gather or a reduce-scatter, as a share of it."""
    return (processes - 1) / processes


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes on one process, at the peak of a step.

    Attributes:
        parameters: its own, whole or one shard.
        gradients: likewise.
        optimizer: state.
        gathered: whole units that are there for a while, with their gradients; and casts of parameters.
        activations: what forward leaves for backward.
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
    """What a process holds. Not in it: the CUDA context, NCCL's buffers, what the allocator cannot use.

    Args:
        largest_unit: parameters of the largest unit, embedding and head included: while one unit is computed the next
            is being gathered, so that two are whole, and the gradients of one.
        activations: bytes, from `activation_bytes` or a measurement.
        parameter_bytes: of a parameter as it is kept and updated, and of its gradient.
        compute_bytes: of a parameter as it is multiplied: 2 in bfloat16.
        reduce_bytes: of a gradient as it is summed.
        state_bytes: of the optimiser's state for a parameter: 8 for AdamW's two moments in float32.
        kept: as in `traffic`, beside the largest unit.
        cast_bytes: of a copy of every parameter that autocast makes and the backward pass needs again, so that the
            whole model is there in it however it is divided: 2 with bfloat16 and parameters that are gathered in
            float32.
        reshard: as in `traffic`; without it every unit is whole from forward to backward.
        whole_gradients: gradients accumulate unsharded over the passes.
    """
    own = parameters / layout.shards
    if layout.shards > 1:
        whole = min(2 * largest_unit + kept, parameters) if reshard else parameters
        gathered = whole * compute_bytes + (parameters if whole_gradients else largest_unit) * reduce_bytes
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
    """What the blocks of a plain GPT leave for the backward pass, in 16-bit: 34 L D bytes a token, or 2 L D + 34 D if a
    block's input alone is kept and the block worked out again (Korthikanti et al. 2022, 2205.05198, equation 1 and
    table 2, without the scores, which fused attention never writes). Logits are not in it."""
    a_block = 34 * d_model * tokens
    return 2 * layers * d_model * tokens + a_block if recompute else layers * a_block
