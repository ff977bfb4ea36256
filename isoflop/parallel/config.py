"""ParallelConfig: how several processes train one model, with checks for inconsistent settings."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from isoflop.errors import UserError

# mode | parameters and optimiser state     | gradients                          | for
# -----|------------------------------------|------------------------------------|-------------------------------------
# none | in one process                     | local                              | one process
# ddp  | replicated                         | all-reduced                        | models that fit one device
# fsdp | sharded over N processes           | reduce-scattered                   | models that do not
# hsdp | sharded over N / replicas of them  | then all-reduced over the replicas | many hosts: gathers stay within one
MODES = ("none", "ddp", "fsdp", "hsdp")
DIVIDED = ("fsdp", "hsdp")


@dataclass(frozen=True)
class ParallelConfig:
    """How several processes train one model. The tokens of a step do not depend on it.

    Raises:
        UserError: naming the field, for a value outside its range.
    """

    mode: Annotated[
        Literal["auto", "none", "ddp", "fsdp", "hsdp"],
        "auto: none in one process, ddp under torchrun; fsdp: parameters sharded; hsdp: sharded within replicas",
    ] = "auto"
    replicas: Annotated[int, "hsdp: number of replicas of the model; 0: one per host"] = 0
    gather: Annotated[
        Literal["float32", "bfloat16"],
        "fsdp, hsdp: dtype in which parameters are gathered; bfloat16 sends half, for runtime.dtype = bfloat16",
    ] = "float32"
    reduce: Annotated[
        Literal["last", "every"],
        "fsdp, hsdp: reduce gradients after a step's last pass, or after every pass: more sent, less memory",
    ] = "last"
    timeout: Annotated[
        float,
        "seconds without progress until a silent process is named and the run stops; more than a checkpoint takes",
    ] = 600.0

    def __post_init__(self) -> None:
        if self.replicas < 0:
            raise UserError(f"parallel.replicas = {self.replicas} is negative; 0 is one per host")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise UserError(f"parallel.timeout = {self.timeout:g} is not a number of seconds above 0")

    def resolve(self, size: int, hosts: int = 1) -> tuple[str, int]:
        """The mode and the number of replicas of the model, among `size` processes on `hosts` hosts.

        Raises:
            UserError: if the settings are inconsistent.
        """
        mode = self.mode
        if mode == "auto":
            mode = "ddp" if size > 1 else "none"

        if self.replicas and mode != "hsdp":
            raise UserError(f"parallel.replicas = {self.replicas} is for parallel.mode = hsdp; the mode is {mode}")
        for field, value, plain in (("gather", self.gather, "float32"), ("reduce", self.reduce, "last")):
            if value != plain and mode not in DIVIDED:
                raise UserError(
                    f"parallel.{field} = {value} is for parallel.mode = fsdp or hsdp; the mode is {mode}; remove it"
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
            equivalent = "fsdp" if replicas == 1 else "ddp"
            raise UserError(
                f"parallel.replicas = {replicas} of {size} processes is the same as parallel.mode = {equivalent}; use "
                f"that, or a number between 1 and {size}"
            )
        return mode, replicas
