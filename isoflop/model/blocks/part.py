"""The interface of every block, and the two layers that own matrices: Linear and Embedding.

A block's keyword-only constructor is its schema. Arguments that the parent supplies (`d_model`, `heads`, `init`, ...)
are shapes and have no default. The others are options, have a default, and can be set by a Spec.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.errors import UserError

Entry = TypeVar("Entry")
Start = int | Tensor  # the position of the first of T tokens, or positions_BT, where rows stand at different ones
FEW_ROWS = 128  # up to this many rows `product` computes (W x^T)^T


class Init(Protocol):
    """An initialisation: fills a weight according to its role.

    Roles: "matrix" (a product inside a branch), "score" (a product that only enters scores: queries, keys, a router),
    "residual" (the product at the end of a branch, added to the residual stream), "embedding", "tied" (an embedding
    that is the head as well), "position" (a learned position table), "value" (a table that is added to values), "gate"
    (a product whose sigmoid is a weight), "head".
    """

    def __call__(self, weight: Tensor, role: str) -> None:
        """Fill `weight` in place, drawing from torch's global generator. Its last dimension is the fan-in."""


class Cache(Protocol):
    """The interface of a key-value cache to attention (generate/cache.py implements it)."""

    @property
    def length(self) -> int:
        """Positions held before this forward pass; the longest row's, if rows differ."""

    def start(self, T: int) -> Start:
        """The position of the first of T new tokens; or positions_BT of all of them, if rows have different lengths."""

    def visible(self, S: int) -> Tensor | None:
        """visible_BS: which of the last S positions, counted after `append`, belong to each row. None: all do."""

    def append(self, layer: int, k_BHTK: Tensor, v_BHTK: Tensor, window: int = 0) -> tuple[Tensor, Tensor]:
        """Store T new positions of one layer. Returns all S = length + T positions; with a window it may return fewer,
        but at least those that the new ones attend to. Keys and values may differ in H and K."""

    def advance(self, positions: int) -> None:
        """Add T to `length`; called once per forward pass, after the last layer."""


class Part(nn.Module):
    """A part of a model. It maps (B, T, D) to (B, T, D), can be built on the meta device, initialises itself and counts
    its own weights and FLOPs.

    Attributes:
        causal: False if an output may depend on later positions.
        causal_in_training: False if it may during training only.
        separate: False if a sequence's output in training depends on the other sequences of its pass.
        keeps_statistics: True if a training forward updates running statistics.
        positional: True if the forward of a norm takes `start`, the position of the first of the T tokens.
        ragged: True if the rows of a batch may be at different positions: a method that takes `start` takes
            positions_BT as well, and an attention applies the mask `cache.visible`. A subclass that overrides such a
            method declares `ragged` again; if it is False, batches are decoded row by row.
        cache_width: numbers per position in a cache.
        absent: True for the entry "none" of a branch: the parent omits the branch.
        score_width: width of the products between positions, at 4 FLOPs per pair: H * K of an attention (2 H K for the
            score, 2 H K for the weighted value), the mean if the two differ, else 0.
        window: the most positions that each one attends to, itself included; 0: all.
        takes_values: True for a class of attention whose forward takes, as its third argument, a tensor that is added
            to its values.
        value_width: G K, the width of those values; 0: no values.
        takes_documents: True for a class of attention whose forward takes `documents_BT`, and attends only to positions
            of the same document.
        auxiliary: the loss that the last training forward adds to the training loss, a scalar with gradient; GPT
            collects it.
    """

    causal: bool = True
    causal_in_training: bool = True
    separate: bool = True
    positional: bool = False
    ragged: ClassVar[bool] = False
    absent: ClassVar[bool] = False
    keeps_statistics: ClassVar[bool] = False
    takes_values: ClassVar[bool] = False
    takes_documents: ClassVar[bool] = False
    score_width: float = 0
    window: int = 0
    value_width: int = 0
    cache_width: int = 0
    auxiliary: Tensor | None = None

    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer that this module itself owns (its children initialise theirs)."""

    def matmul_weights(self) -> int:
        """The number of its own weights that multiply a token (children not included)."""
        return 0

    def score_flops(self, context: int) -> float:
        """Forward FLOPs per token of products between positions (children not included).

        A causal position t of `context` attends to min(t, w) positions, w = min(window, context): on average
        w - w (w - 1) / (2 context), which is (context + 1) / 2 without a window. Masked pairs are not counted.
        """
        w = self.band(context)
        return 4 * self.score_width * (w - w * (w - 1) / (2 * context))

    def band(self, context: int) -> int:
        """The most positions that one attends to in sequences of `context`."""
        return min(self.window or context, context)

    def readings(self) -> dict[str, float]:
        """Metrics of the last forward pass by name (children not included). Computed when called, so it may synchronise
        with the device."""
        return {}

    def flops(self, context: int) -> float:
        """Forward FLOPs per token of the matrix products in this part, children included, elementwise work excluded."""
        parts = [module for module in self.modules() if isinstance(module, (Part, Linear))]
        return sum(2 * part.matmul_weights() + part.score_flops(context) for part in parts)


class Unit(Part):
    """A part that is sharded, recomputed or compiled as one unit: a block.

    A subclass implements `compute`; the module is called like any other. A wrapper added by `wrap` runs inside the
    module's own hooks and does not change the names of its tensors.
    """

    _wrapped: Callable[..., Tensor] | None = None

    def compute(self, *inputs: Any, **options: Any) -> Tensor:
        """The unit's forward pass."""
        raise NotImplementedError

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        return (self._wrapped or self.compute)(*inputs, **options)

    def wrap(self, wrapper: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
        """Replace the forward pass by `wrapper(compute)`. Several wrappers nest, the last one outermost."""
        self._wrapped = wrapper(self._wrapped or self.compute)


class ByDepth:
    """An entry that chooses among others by depth: layer l is built as item l mod n of `pattern`.

    It is not a part itself: `make` builds the chosen entry in its place.
    """

    def __init__(self, *, layer: int, pattern: tuple[Any, ...]) -> None:
        if not pattern:
            raise UserError("pattern is empty; name at least one entry")
        self.item = layer % len(pattern)
        self.chosen = pattern[self.item]


class Absent(Part):
    """The entry "none" of a branch: the block is built without it."""

    absent = True
    ragged = True

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        return torch.zeros_like(x_BTD)


class Linear(nn.Linear):
    """y = x W^T (+ b), W initialised by its role and b with zeros."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool, init: Init, role: str = "matrix") -> None:
        self.init, self.role = init, role  # before nn.Linear's constructor, which calls reset_parameters
        super().__init__(d_in, d_out, bias=bias)

    def reset_parameters(self) -> None:
        self.init(self.weight, self.role)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bias)

    def matmul_weights(self) -> int:
        return self.weight.numel()

    def score_flops(self, context: int) -> float:
        return 0


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T (+ b), as F.linear.

    A few rows in bfloat16, as in decoding, are computed as (W x^T)^T: on a CPU torch reads W 1.3 to 1.8 times as fast
    if W comes first (bench/decode.py), and for one row if x is a vector.
    """
    few = weight.dtype == x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if not few or not 1 <= x.shape[:-1].numel() <= FEW_ROWS:
        return F.linear(x, weight, bias)
    x_NC = x.reshape(-1, x.shape[-1])
    y_ND = torch.mv(weight, x_NC[0]).unsqueeze(0) if len(x_NC) == 1 else torch.mm(weight, x_NC.t()).t().contiguous()
    y_ND = y_ND if bias is None else y_ND + bias
    return y_ND.reshape(*x.shape[:-1], weight.shape[0])


def rows_at(table_TK: Tensor, start: Start, T: int) -> Tensor:
    """The rows of a table for T tokens: (T, K) from position `start` on, or (B, T, K) for positions_BT."""
    return table_TK[start : start + T] if isinstance(start, int) else F.embedding(start, table_TK)


class Embedding(nn.Embedding):
    """A look-up table, initialised by its role. It has no matrix product."""

    def __init__(self, rows: int, dim: int, *, init: Init, role: str = "embedding") -> None:
        self.init, self.role = init, role
        super().__init__(rows, dim)

    def reset_parameters(self) -> None:
        self.init(self.weight, self.role)


def reset_inside(model: nn.Module) -> None:
    """Let every module below `model` initialise its own tensors, in the order of construction."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None and module is not model:
            reset()


def take_auxiliary(model: nn.Module) -> Tensor | float:
    """The sum of the parts' auxiliary losses; each is cleared."""
    total: Tensor | float = 0.0
    for module in model.modules():
        if isinstance(module, Part) and module.auxiliary is not None:
            total = total + module.auxiliary
            module.auxiliary = None
    return total


def mean_readings(units: Iterable[nn.Module]) -> dict[str, float]:
    """The metrics of the parts of some blocks (Part.readings), each name's mean over the parts that have it."""
    values_of: dict[str, list[float]] = {}
    for part in (module for unit in units for module in unit.modules() if isinstance(module, Part)):
        for name, value in part.readings().items():
            values_of.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in values_of.items()}


def entry(table: Mapping[str, Entry], name: str, where: str) -> Entry:
    """Look `name` up in a literal table.

    Raises:
        UserError: naming the nearest entry and all of them.
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name)[:100], table, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{where} = {name!r} is not one of {', '.join(table)}{hint}")
