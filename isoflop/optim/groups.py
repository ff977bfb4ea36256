"""Parameter groups: the optimiser and the weight decay of each parameter.

| group     | parameters                                                | weight decay | trained by |
|-----------|-----------------------------------------------------------|--------------|------------|
| matrices  | 2-D and higher inside the blocks (`model.units()`)        | yes          | Muon       |
| embedding | lookup tables, inside and outside the blocks              | yes          | AdamW      |
| value     | tables of value embeddings                                | yes          | AdamW      |
| head      | other 2-D weights outside the blocks                      | yes          | AdamW      |
| vectors   | gains, biases and scalars                                 | no           | AdamW      |

Muon's step treats a matrix as a linear map between two feature spaces. A lookup table is not one (each row is used
separately), and the head has a row per token id, so both stay with AdamW, as in
https://kellerjordan.github.io/posts/muon/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasUnits(Protocol):
    """A model that lists its blocks."""

    def units(self) -> Sequence[nn.Module]: ...


@dataclass(frozen=True)
class Group:
    """Parameters that share optimiser settings, with their names in the model."""

    name: str
    decay: bool
    parameters: dict[str, nn.Parameter]


def split(model: nn.Module) -> list[Group]:
    """Put every trainable parameter of `model` into exactly one group; empty groups are omitted.

    A tied parameter counts once, under its first name; tied between embedding and head it is an embedding. Frozen
    parameters (`requires_grad` False) are in no group.
    """
    if not isinstance(model, HasUnits):
        raise TypeError(f"{type(model).__name__} has no units(): the list of its blocks")

    inside = {id(p) for unit in model.units() for p in unit.parameters()}
    # the role that a table is initialised by (model/blocks/part.py) tells those of value embeddings
    tables = {id(m.weight): getattr(m, "role", "") for m in model.modules() if isinstance(m, nn.Embedding)}
    groups = [Group(name, name != "vectors", {}) for name in ("matrices", "embedding", "value", "head", "vectors")]
    by_name = {group.name: group.parameters for group in groups}

    for name, parameter in model.named_parameters():  # a tensor with several names once
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            kind = "vectors"
        elif id(parameter) in tables:
            kind = "value" if tables[id(parameter)] == "value" else "embedding"
        else:
            kind = "matrices" if id(parameter) in inside else "head"
        by_name[kind][name] = parameter

    return [group for group in groups if group.parameters]
