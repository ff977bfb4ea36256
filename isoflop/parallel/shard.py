"""How a model lies over the processes: whole, copied (DDP), divided (FSDP2), or divided within copies (HSDP).

The model is single-device code and stays so: it lists its units, and here is what is done to them. A `Layout` is what a
training step sees of it:

                parameters        a pass with gradient       gradients of the step         norm         Muon
    Layout      whole             the loss itself            its own                       its own      all matrices
    Replicated  whole, all alike  through DDP                summed as backward goes       the first's  1/N of them
    Sharded     1/N of each unit  units gathered in turn     summed, each keeps its piece  over pieces  1/N of them

Gradients are sums and never means: every pass is weighted by its share of the targets of the whole step, over all
processes, so that the sum is the gradient of the whole step's mean however the targets are spread (in batches of pairs
each process has another number). What is summed in another order differs in the last bits, and in nothing else.

All modes start from the same weights. What is divided is built without memory (on the meta device) and then filled in
the order of its construction, from the same seed as a whole one, each unit divided as soon as it is full: no device
ever holds more than one whole unit beside its pieces, and what lies outside the units.
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
from isoflop.parallel.matrices import Divided, Shared
from isoflop.parallel.mesh import ALONE, Group

Loss = Callable[..., Tensor]
Weights = Mapping[str, Tensor]

# by what a model or one of its units may be entered, beside forward
ENTRANCES = ("hidden", "hidden_mtp", "logits", "read", "write", "remember")


class Layout:
    """A model that lies whole in the only process.

    Attributes:
        group: the processes.
        matrices: how an optimiser gets at whole matrices; None: they are whole.
        forward_is_collective: whether a forward pass needs all processes, also one without gradients.
    """

    matrices: Shared | Divided | None = None
    forward_is_collective = False

    def __init__(self, model: Any, loss: Loss, group: Group = ALONE) -> None:
        self.model, self.group, self._loss = model, group, loss

    def loss(self, *batch: Tensor) -> Tensor:
        """The loss of one pass, with gradient."""
        return self._loss(self.model, *batch)

    def last_pass(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """The context of a pass and its backward. Gradients are exchanged in the step's last one."""
        return contextlib.nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.group.sum(tensor)

    def whole(self, tensor: Tensor) -> Tensor:
        """A number of which each process may have a part (a norm), whole, and with the same bits in all. Sums have them
        anyway; what each works out for itself need not, where processors or threads differ, and may be overwritten."""
        return tensor


class Pass(nn.Module):
    """The loss as a module's forward: what DDP wraps."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss(self.model, *batch)


class Replicated(Layout):
    """Every process has the whole model; gradients are summed while the backward pass goes on."""

    def __init__(self, model: nn.Module, loss: Loss, group: Group) -> None:
        super().__init__(model, loss, group)
        # what buffers a model may have is alike everywhere, so none is sent; torch 2.13 has another word for it
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: Any = {quiet: False, "gradient_as_bucket_view": True}
        self._wrapped = DistributedDataParallel(Pass(model, loss), **options)
        self._wrapped.register_comm_hook(None, summed)
        self.matrices = Shared(group)

    def loss(self, *batch: Tensor) -> Tensor:
        value: Tensor = self._wrapped(*batch)
        return value

    @contextlib.contextmanager
    def last_pass(self, last: bool) -> Any:
        with contextlib.nullcontext() if last else self._wrapped.no_sync():
            yield

    def whole(self, tensor: Tensor) -> Tensor:
        return self.group.broadcast_(tensor)


class Sharded(Layout):
    """Every process has a piece of each unit, and gathers a unit when its turn comes."""

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
        again = {id(unit): unit is not units[-1] for unit in units}  # backward begins with the last one: it stays

        def divide_one(module: nn.Module) -> None:
            if id(module) in again:
                divide(module, mesh, again[id(module)], config.gather == "bfloat16")
            elif module is model:
                divide(module, mesh, again=False)

        fill(model, device, weights or {}, divide_one)
        self.matrices = Divided(mesh["piece"] if replicas > 1 else mesh)

    @contextlib.contextmanager
    def last_pass(self, last: bool) -> Any:
        self.model.set_requires_gradient_sync(last or self.every)
        yield

    def whole(self, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return whole if self.copies == 1 else self.group.broadcast_(whole)


def lay_out(
    model: Any, loss: Loss, group: Group, config: ParallelConfig, device: str, weights: Weights | None = None
) -> Layout:
    """Divide a model, which is alike in all processes, as the configuration says.

    Args:
        model: whole on `device`, or, where it is to be divided, on the meta device, to be filled from torch's seed.
        loss: (model, *batch) -> a scalar with gradient.
        weights: what a model that is divided begins with instead, by name.
    """
    mode, _ = config.resolve(group.size, group.hosts)
    if mode == "none":
        return Layout(model, loss)
    if mode == "ddp":
        return Replicated(model, loss, group)
    return Sharded(model, loss, group, config, device, weights)


def fill(model: nn.Module, device: str, weights: Weights, filled: Callable[[nn.Module], None]) -> None:
    """Give a model on the meta device memory and values: what its construction gives from the same seed, or `weights`.
    Module by module, in the order of construction, and each goes to `filled` when it and all in it have theirs."""
    seen = set()

    def visit(module: Any, prefix: str) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
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


def divide(module: Any, mesh: Any, again: bool, half: bool = False) -> None:
    """FSDP2 on one module.

    Args:
        again: its pieces are gathered again for the backward pass, not kept whole until then.
        half: they are gathered in bfloat16; gradients are summed in float32 all the same.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy()
    if half:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    sharded = fully_shard(module, mesh=mesh, reshard_after_forward=again, mp_policy=policy)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    for name in ENTRANCES:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def summed(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """What DDP does with a bucket of gradients: their sum over all processes (its own way is the mean)."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
