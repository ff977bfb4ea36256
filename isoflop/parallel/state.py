"""Training state as a flat dict of named tensors, saved in and loaded from a folder of safetensors, sharded or not.

    model.<name>            a parameter or persistent buffer, under its name in the model; a tied one once
    average.<name>          the average of that parameter during the run, if there is one (trainer/average.py)
    probe.<name>            its average for the running forecast, before the decay (trainer/decay_probe.py)
    optim.<name>.<key>      the optimiser's state for that parameter: momentum, moments, its step count
    rng.<device>            the state of torch's random generator of that device, a uint8 vector

The names do not depend on how the tensors are sharded. Each process writes the shards that it holds (torch's
distributed checkpoint, DCP, in the safetensors format); a reader with another number of processes finds its parts by
the stored offsets. DCP's own format has a pickled `.metadata`, which its default reader unpickles, so only its
safetensors reader and writer are used here: they neither write nor read one.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.files import new_folder
from isoflop.parallel.mesh import present

MODEL, AVERAGE, PROBE = "model.", "average.", "probe."  # prefixes of names

# Added by torch.compile and recomputation to the names of the modules that they wrap.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: its full shape, over all shards."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live parameters and persistent buffers as `model.<name>`; a tied tensor once, under its first name."""
    tensors: dict[str, Tensor] = {}
    visited: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in visited:
            visited.add(id(tensor))
            tensors[f"model.{clean(name)}"] = tensor
    return tensors


def optimizer_tensors(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as `optim.<parameter's name>.<key>`; empty before their first step.

    State tensors are the live ones; a plain number becomes a 0-dimensional tensor.
    """
    return {
        f"optim.{name}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, optimizer, parameter in owners(model, optimizers)
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def owners(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
    """(name in the model, optimiser, parameter) for every parameter of the optimisers."""
    names = {id(tensor): name.removeprefix("model.") for name, tensor in model_tensors(model).items()}
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            yield names[id(parameter)], optimizer, parameter


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a folder. Every process calls it and writes its own shards.

    Any sharding and any dtype of safetensors is possible, as are tensors without elements or dimensions.

    Raises:
        OSError: for an error of the disk.
    """
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    dcp = distributed_checkpoint()
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with unwrapped_errors():
        dcp.save(contiguous, storage_writer=writer, no_dist=not dist.is_initialized())


def first() -> bool:
    """Whether this is the first process, which creates and removes folders."""
    return present().first


@contextmanager
def folder_for_all(final: Path) -> Iterator[tuple[Path, bool]]:
    """files.new_folder for a folder that all processes write into: yields the temporary folder, and whether this
    process is the one that finishes it. All leave the context after the folder has its final name."""
    group = present()
    if group.first:
        with new_folder(final) as folder:
            group.broadcast(str(folder))
            yield folder, True
    else:
        yield Path(group.broadcast()), False
    group.barrier()


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors in main memory, which training does not change. Synchronises with the device."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors in a folder, from the files' headers alone.

    Raises:
        UserError: if a file is not safetensors, or shards are missing.
    """
    # The files may come from anyone: any exception while reading their headers means a bad file.
    stored: dict[str, Stored] = {}
    element_counts: dict[str, int] = {}
    try:
        reader = distributed_checkpoint().HuggingFaceStorageReader(str(folder))
        for name, meta in reader.read_metadata().state_dict_metadata.items():
            stored[name] = Stored(tuple(meta.size), meta.properties.dtype)
            if any(offset < 0 for chunk in meta.chunks for offset in chunk.offsets):
                raise ValueError(f"negative offset in {name}")
            element_counts[name] = sum(chunk.sizes.numel() for chunk in meta.chunks)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be read as safetensors ({reason}); use another checkpoint") from None

    for name, tensor in stored.items():
        if element_counts[name] != math.prod(tensor.shape):
            raise UserError(f"{folder} does not hold all of {name[:200]!r}: a shard is missing; use another checkpoint")
    return stored


def load_tensors(folder: Path, tensors: Mapping[str, Tensor], stored: Mapping[str, Stored] | None = None) -> None:
    """Load `tensors`, in place, from those of the same name in a folder. Other tensors in it are ignored.

    Args:
        folder: as written by `save_tensors`, by any number of processes.
        tensors: name -> the tensor to fill, sharded or not.
        stored: `stored_tensors(folder)`, if it was read before.

    Raises:
        UserError: naming the first tensor that is missing or has another shape or dtype; nothing is changed.
    """
    stored = stored_tensors(folder) if stored is None else stored
    for name, tensor in tensors.items():
        require_same_kind(name, tensor, stored.get(name))
    if tensors:
        detached = {name: tensor.detach() for name, tensor in tensors.items()}
        dcp = distributed_checkpoint()
        reader = dcp.HuggingFaceStorageReader(str(folder))
        with unwrapped_errors():
            dcp.load(detached, storage_reader=reader, no_dist=not dist.is_initialized())


def restore(folder: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Load weights and optimiser state in place, whether or not the optimisers have taken a step.

    The optimisers continue bit for bit. Without optimisers, only the weights are loaded.

    Raises:
        UserError: naming the first tensor that only one side has, or that differs in shape or dtype; nothing is
            changed then.
    """
    optimizers = list(optimizers)
    stored = stored_tensors(folder)
    weights = model_tensors(model)
    for name in stored:
        if name.startswith("model.") and name not in weights:
            raise UserError(f"the checkpoint has {name[:200]!r} and the model does not: their configurations differ")
    for name, tensor in weights.items():
        require_same_kind(name, tensor, stored.get(name))

    created = create_state(optimizers)
    try:
        state_tensors = match_state(model, optimizers, stored)
    except UserError:
        drop(created)
        raise

    load_tensors(folder, {**weights, **state_tensors}, stored)
    for name, optimizer, parameter in owners(model, optimizers):
        state = optimizer.state[parameter]
        if not any(f"optim.{name}.{key}" in state_tensors for key in state):
            drop([(optimizer, parameter)])  # it was saved before its first step
            continue
        for key, value in state.items():
            if value is not None and not isinstance(value, Tensor):
                state[key] = type(value)(state_tensors[f"optim.{name}.{key}"].item())


def generator_tensors() -> dict[str, Tensor]:
    """The states of torch's generators: `rng.cpu`, and `rng.cuda.0`, `rng.mps` if those are in use. Several processes
    store one `rng.cpu` for all: each is seeded by seed, step and rank."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized() and present().alone:
        tensors |= {f"rng.cuda.{i}": tensor for i, tensor in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["rng.mps"] = torch.mps.get_rng_state()
    return tensors


def restore_generators(folder: Path) -> None:
    """Restore the generators that exist in this process and in the folder. A run on another device uses new ones.

    Raises:
        UserError: if a stored tensor is not the state of a generator.
    """
    stored = stored_tensors(folder)
    tensors = {name: tensor for name, tensor in generator_tensors().items() if name in stored}
    load_tensors(folder, tensors, stored)
    try:
        set_generators(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{folder} holds no usable state of a random generator ({error}); use another checkpoint"
        ) from None


def set_generators(tensors: Mapping[str, Tensor]) -> None:
    """Set torch's generators to states from `generator_tensors`."""
    for name, tensor in tensors.items():
        match name.split("."):
            case [_, "cpu"]:
                torch.set_rng_state(tensor)
            case [_, "mps"]:
                torch.mps.set_rng_state(tensor)
            case [_, _, index]:
                torch.cuda.set_rng_state(tensor, int(index))


def match_state(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], stored: Mapping[str, Stored]
) -> dict[str, Tensor]:
    """The state tensors to load: per parameter all, or none if it had none when it was saved.

    Raises:
        UserError: naming the first tensor that differs.
    """
    if not optimizers:
        return {}
    state = optimizer_tensors(model, optimizers)
    saved = set()
    for name in stored:
        if name.startswith("optim."):
            if name not in state:
                raise UserError(
                    f"the checkpoint has {name[:200]!r}, which this optimiser does not keep: settings differ"
                )
            saved.add(name.rpartition(".")[0])
    wanted = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] in saved}
    for name, tensor in wanted.items():
        require_same_kind(name, tensor, stored.get(name))
    return wanted


def create_state(optimizers: Iterable[torch.optim.Optimizer]) -> list[tuple[torch.optim.Optimizer, Tensor]]:
    """Let optimisers that have not taken a step create their state, by a step with a learning rate of 0.

    Returns:
        The (optimiser, parameter) pairs whose state is new.
    """
    created: list[tuple[torch.optim.Optimizer, Tensor]] = []
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        new = [p for p in parameters if not optimizer.state.get(p)]
        if not new:
            continue

        gradients = [p.grad for p in parameters]
        rates = [group["lr"] for group in optimizer.param_groups]
        for p in parameters:
            p.grad = None
        for p in new:
            p.grad = torch.zeros_like(p)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()

        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        created += [(optimizer, p) for p in new]
    return created


def drop(owned: Iterable[tuple[torch.optim.Optimizer, Tensor]]) -> None:
    for optimizer, parameter in owned:
        optimizer.state.pop(parameter, None)


def require_same_kind(name: str, tensor: Tensor, stored: Stored | None) -> None:
    """Raises UserError unless `stored` exists and has the tensor's shape and dtype."""
    if stored is None:
        raise UserError(f"the checkpoint has no {name!r}: its configuration differs from this one")
    if stored.shape != tuple(tensor.shape):
        shape = tuple(tensor.shape)
        raise UserError(f"{name!r} is {stored.shape} in the checkpoint and {shape} in the run: configurations differ")
    if stored.dtype != tensor.dtype:
        raise UserError(
            f"{name!r} is {stored.dtype} in the checkpoint and {tensor.dtype} in the run: configurations differ"
        )


def clean(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@contextmanager
def unwrapped_errors() -> Iterator[None]:
    """Unwrap DCP's exceptions, and silence its warning that there is only one process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except BaseException as error:
        if isinstance(error, distributed_checkpoint().CheckpointException):  # carries each process's error
            raise next(iter(error.failures.values()))[0] from None
        raise


def distributed_checkpoint() -> Any:
    """torch's DCP, imported when something is first saved or read: the import doubles the time of a start."""
    import torch.distributed.checkpoint as dcp

    return dcp
