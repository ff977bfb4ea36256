"""Distributes a model over processes: in one process, replicated (DDP), sharded (FSDP2), or sharded within replicas
(HSDP).

The model stays single-device code: it lists its units, and this module wraps them. A training step uses it through a
`Layout`:

                parameters        forward and backward       gradients of the step         norm          Muon
    Layout      in one process    the loss itself            local                         local         all matrices
    Replicated  replicated        through DDP                all-reduced during backward   of process 0  1/N of them
    Sharded     1/N of each unit  units gathered in turn     reduce-scattered              over shards   1/N of them

Gradients are sums, never means: every pass is weighted by its share of the targets of the step over all processes. So
the sum is the gradient of the step's mean loss for any distribution of the targets (in batches of pairs each process
has another number). Modes differ only in the order of summation, and so in the last bits.

All modes start from the same weights. A sharded model is built on the meta device and then initialised in the order of
its construction, from the same seed as an unsharded one, and each unit is sharded as soon as it is initialised: no
device ever holds more than one full unit next to its shards and the parameters outside the units.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isoflop.parallel.config import ParallelConfig
from isoflop.parallel.matrices import ReplicatedMatrices, ShardedMatrices
from isoflop.parallel.mesh import ALONE, Group

Loss = Callable[..., Tensor]
Weights = Mapping[str, Tensor]

# Methods other than `forward` by which a model or a unit is called: FSDP has to gather parameters for these as well.
ENTRANCES = ("hidden", "hidden_mtp", "logits", "read", "write", "remember")


class Layout:
    """A model in a single process.

    Attributes:
        group: the processes.
        matrices: how an optimiser gets full matrices; None: they are local.
        forward_is_collective: whether all processes have to take part in a forward pass, even without gradients.
    """

    matrices: ReplicatedMatrices | ShardedMatrices | None = None
    forward_is_collective = False

    def __init__(self, model: Any, loss: Loss, group: Group = ALONE) -> None:
        self.model, self.group, self._loss = model, group, loss

    def loss(self, *batch: Tensor) -> Tensor:
        """The loss of one pass, with gradient."""
        return self._loss(self.model, *batch)

    def last_pass(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """The context of a forward and backward pass. Gradients are exchanged in the step's last pass."""
        return contextlib.nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.group.sum(tensor)

    def global_norm(self, norm: Tensor) -> Tensor:
        """The gradient norm over all shards, with the same bits in all processes, from that of this process's shards.

        A norm that each process computes by itself may differ between processors or numbers of threads, so that of the
        first process is used. `norm` may be overwritten.
        """
        return norm


class Pass(nn.Module):
    """The loss as a module's forward, for DDP to wrap."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


class Replicated(Layout):
    """DDP: every process has the full model; gradients are summed during the backward pass."""

    def __init__(self, model: nn.Module, loss: Loss, group: Group) -> None:
        super().__init__(model, loss, group)
        # Buffers are equal in all processes, so none is sent; torch 2.13 renamed the option.
        accepted = inspect.signature(DistributedDataParallel.__init__).parameters
        sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        options: Any = {sync_buffers: False, "gradient_as_bucket_view": True}
        self._wrapped = DistributedDataParallel(Pass(model, loss), **options)
        self._wrapped.register_comm_hook(None, sum_bucket)
        self.matrices = ReplicatedMatrices(group)

    def loss(self, *batch: Tensor) -> Tensor:
        value: Tensor = self._wrapped(*batch)
        return value

    @contextlib.contextmanager
    def last_pass(self, last: bool) -> Any:
        with contextlib.nullcontext() if last else self._wrapped.no_sync():
            yield

    def global_norm(self, norm: Tensor) -> Tensor:
        return self.group.broadcast_(norm)


class Sharded(Layout):
    """FSDP2 or HSDP: every process has a shard of each unit, and gathers a unit when it is computed."""

    forward_is_collective = True

    def __init__(
        self, model: Any, loss: Loss, group: Group, config: ParallelConfig, device: str, weights: Weights | None
    ) -> None:
        super().__init__(model, loss, group)
        _, replicas = config.resolve(group.size, group.hosts)
        self.copies = replicas
        mesh = group.mesh(device, replicas)
        self.every = config.reduce == "every"
        units = [*model.units_within(), *model.units()]
        reshard = {id(unit): unit is not units[-1] for unit in units}  # the backward pass starts with the last unit

        def shard_unit(module: nn.Module) -> None:
            if id(module) in reshard:
                shard(module, mesh, reshard[id(module)], config.gather == "bfloat16")
            elif module is model:
                shard(module, mesh, reshard=False)

        fill(model, device, weights or {}, shard_unit)
        self.matrices = ShardedMatrices(mesh["piece"] if replicas > 1 else mesh)

    @contextlib.contextmanager
    def last_pass(self, last: bool) -> Any:
        self.model.set_requires_gradient_sync(last or self.every)
        yield

    def global_norm(self, norm: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        full = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return full if self.copies == 1 else self.group.broadcast_(full)


def distribute(
    model: Any, loss: Loss, group: Group, config: ParallelConfig, device: str, weights: Weights | None = None
) -> Layout:
    """Distribute a model, which is the same in all processes, as configured.

    Args:
        model: on `device`; if it is to be sharded, on the meta device, to be initialised from torch's seed.
        loss: (model, *batch) -> a scalar with gradient.
        weights: initial weights of a sharded model by name, in place of random ones.
    """
    mode, _ = config.resolve(group.size, group.hosts)
    if mode == "none":
        return Layout(model, loss)
    if mode == "ddp":
        return Replicated(model, loss, group)
    return Sharded(model, loss, group, config, device, weights)


def fill(model: nn.Module, device: str, weights: Weights, filled: Callable[[nn.Module], None]) -> None:
    """Allocate and initialise a model on the meta device, with the values of its construction from the same seed, or
    `weights`. Module by module, in the order of construction; `filled` is called with each module after its children.
    """
    visited = set()

    def visit(module: Any, prefix: str) -> None:
        if id(module) in visited:
            return
        visited.add(id(module))
        module.to_empty(device=device, recurse=False)
        if module is not model and hasattr(module, "reset_parameters"):
            module.reset_parameters()
        with torch.no_grad():
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if prefix + name in weights:
                    tensor.copy_(weights[prefix + name])
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.")
        filled(module)

    visit(model, "")


def shard(module: Any, mesh: Any, reshard: bool, half: bool = False) -> None:
    """Apply FSDP2 to one module.

    Args:
        reshard: free its gathered parameters after the forward pass and gather them again for the backward pass.
        half: gather in bfloat16; gradients are still reduced in float32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy()
    if half:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    sharded = fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    for name in ENTRANCES:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def sum_bucket(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's hook for a bucket of gradients: the sum over all processes, not DDP's default, the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
