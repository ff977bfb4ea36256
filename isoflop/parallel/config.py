"""How a run is divided among processes: what can be chosen, and what makes no sense."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from isoflop.errors import UserError

# what is divided | parameters and optimiser state   | gradients                     | for
# ----------------|-----------------------------------|-------------------------------|--------------------------------
# none            | whole                             | whole                         | one process
# ddp             | whole in every process            | summed over all               | models that fit one device
# fsdp            | a piece in each of N              | reduced to the own piece      | models that do not
# hsdp            | a piece in each of N / replicas   | then summed over the replicas | many hosts: pieces stay near
MODES = ("none", "ddp", "fsdp", "hsdp")
DIVIDED = ("fsdp", "hsdp")


@dataclass(frozen=True)
class ParallelConfig:
    """How one model is trained by several processes. Which tokens a step sees does not depend on it.

    Raises:
        UserError: naming the field, for a value outside its range.
    """

    mode: Annotated[
        Literal["auto", "none", "ddp", "fsdp", "hsdp"],
        "auto: none in one process, ddp under torchrun; fsdp: parameters divided; hsdp: divided within replicas",
    ] = "auto"
    replicas: Annotated[int, "hsdp: how many whole copies of the model there are; 0: one a host"] = 0
    gather: Annotated[
        Literal["float32", "bfloat16"],
        "fsdp, hsdp: what a unit's parameters are sent as; bfloat16 halves it, for runtime.dtype = bfloat16",
    ] = "float32"
    reduce: Annotated[
        Literal["last", "every"],
        "fsdp, hsdp: gradients are summed after a step's last pass, or after every pass: more sent, only a piece held",
    ] = "last"
    timeout: Annotated[
        float,
        "seconds without progress until a silent process is named and the run stops; more than a checkpoint takes",
    ] = 600.0

    def __post_init__(self) -> None:
        if self.replicas < 0:
            raise UserError(f"parallel.replicas = {self.replicas} is negative; 0 is one a host")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UserError(f"parallel.timeout = {self.timeout:g} is not a number of seconds above 0")

    def resolve(self, size: int, hosts: int = 1) -> tuple[str, int]:
        """The mode and the number of whole copies of the model, among `size` processes on `hosts` hosts.

        Raises:
            UserError: if they do not go together.
        """
        mode = self.mode
        if mode == "auto":
            mode = "ddp" if size > 1 else "none"
        if self.replicas and mode != "hsdp":
            raise UserError(f"parallel.replicas = {self.replicas} is for parallel.mode = hsdp; the mode is {mode}")
        for field, value, plain in (("gather", self.gather, "float32"), ("reduce", self.reduce, "last")):
            if value != plain and mode not in DIVIDED:
                raise UserError(
                    f"parallel.{field} = {value} is for parallel.mode = fsdp or hsdp; the mode is {mode}; leave it out"
                )
        if size == 1 and mode != "none":
            raise UserError(
                f"parallel.mode = {mode} needs several processes: start it as torchrun --nproc-per-node N -m isoflop "
                "train ..., or use --set parallel.mode=auto"
            )
        if size > 1 and mode == "none":
            raise UserError(
                f"parallel.mode = none is for one process and there are {size}; use auto, ddp, fsdp or hsdp"
            )
        if mode != "hsdp":
            return mode, size if mode == "ddp" else 1
        replicas = self.replicas or hosts
        if size % replicas:
            raise UserError(f"parallel.replicas = {replicas} does not divide the {size} processes")
        if not 1 < replicas < size:
            other = "fsdp" if replicas == 1 else "ddp"
            raise UserError(
                f"parallel.replicas = {replicas} of {size} processes is what parallel.mode = {other} does; use "
                "that, or a number between"
            )
        return mode, replicas
