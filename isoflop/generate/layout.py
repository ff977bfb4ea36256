"""The memory layout of weights for decoding, when a product has few rows.

A product with one vector is bound by reading its weights from memory, which torch does fastest in long contiguous runs.
W (out, in) of a Linear is stored row by row, in runs of `in`; if `out` is larger, storing it column by column is faster
in float32: 19 to 25 GB/s against 12.5 for GPT-2's widest products, one thread of an EPYC of 2019. In bfloat16 rows are
better, and `product` (model/blocks/part.py) reads them. So are they for kernels of our own, which read all rows of a
thread's part one after another.

Weights that multiply the same vector (queries, keys and values; gate and up) are stored next to each other, so that a
decoding step multiplies by all of them at once (fused.py).

Only the order in memory changes, not shapes, values or names; training, saving and loading see no difference but
`is_contiguous()`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isoflop.kernels.compiled import available
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import Gated
from isoflop.model.blocks.moe import Experts
from isoflop.model.gpt import GPT

# The width from which on products are those of the kernels. Narrower weights stay in a cache, where torch's are faster:
# with kernels a step of 3 layers x 96 took 4 to 14 % longer, one of 4 x 256 up to 7 % less with 4 and 16 rows.
NARROWEST = 256


@torch.no_grad()
def lay_out(model: GPT) -> None:
    """Store the weights of a model as its decoding steps read them. On a CPU only; it takes as long as copying them
    once."""
    if for_kernels(model):
        for group in product_weights(model):
            put_together(group, by_columns=False)
        return
    for group in product_weights(model):
        if group[0].device.type != "cpu":
            continue
        out, width = sum(len(weight) for weight in group), group[0].shape[1]
        by_columns = group[0].dtype != torch.bfloat16 and out >= width
        if by_columns or len(group) > 1:
            put_together(group, by_columns)


def for_kernels(model: GPT) -> bool:
    """Whether the products of a decoding step with a few rows are those of the kernels (kernels/decode.c)."""
    weight = model.head_weight
    usual = weight.device.type == "cpu" and weight.dtype == torch.float32
    return usual and weight.shape[1] >= NARROWEST and available()


@torch.no_grad()
def lay_out_for_kernels(model: GPT) -> None:
    """Store every weight of a product row by row, those of one input next to each other, if they are not yet."""
    for group in product_weights(model):
        one = joined([weight.detach() for weight in group])
        if one is None or one.stride(1) != 1:
            put_together(group, by_columns=False)


@torch.no_grad()
def narrow(model: GPT) -> None:
    """Round the weights of products and look-ups to bfloat16, so that a token reads half the memory. Norms, statistics
    and routers, which depend on small differences, stay in float32."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, Experts)) and not name.endswith("router"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    for group in same_input(model):
        if group[0].device.type == "cpu":
            put_together(group, by_columns=False)


def product_weights(model: GPT) -> list[list[Tensor]]:
    """The weights of all products, the head's too: those that multiply the same vector as one group, others alone."""
    groups = same_input(model)
    joint = {id(weight) for group in groups for weight in group}
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return groups + [[weight] for weight in (*linear, model.head_weight) if id(weight) not in joint]


def same_input(model: nn.Module) -> list[list[Tensor]]:
    """The weights (out, in) of a model that multiply the same vector, group by group."""
    groups: list[list[Tensor]] = []
    for module in model.modules():
        if isinstance(module, Attention):
            groups.append([module.q.weight, module.k.weight, module.v.weight])
        elif isinstance(module, Gated):
            groups.append([module.gate.weight, module.up.weight])
    return groups


def put_together(weights: Sequence[Tensor], by_columns: bool) -> None:
    """Store weights (out, in) as one matrix of all their rows, by columns or by rows."""
    data = [weight.data for weight in weights]
    one = torch.cat(data) if len(data) > 1 else data[0]
    one = one.t().contiguous().t() if by_columns else one.contiguous()
    begin = 0
    for weight in weights:
        weight.data = one[begin : begin + len(weight)]
        begin += len(weight)


def joined(weights: Sequence[Tensor]) -> Tensor | None:
    """All rows of weights (out, in) as one matrix without a copy; None if they do not lie next to each other."""
    first, rows = weights[0], 0
    for weight in weights:
        same_memory = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        behind = weight.storage_offset() == first.storage_offset() + rows * first.stride(0)
        if not same_memory or not behind or weight.stride() != first.stride() or weight.dtype != first.dtype:
            return None
        rows += len(weight)
    return first.as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())
