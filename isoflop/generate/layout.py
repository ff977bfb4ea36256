"""The memory layout of weights for decoding, when a product has few rows.

A product with one vector is bound by reading its weights from memory, which is fastest in long contiguous runs. W (out,
in) of a Linear is stored row by row, in runs of `in`; if `out` is larger, storing it column by column is faster in
float32: 19 to 25 GB/s against 12.5 for GPT-2's widest products, one thread of an EPYC of 2019. Only the order in memory
changes, not shapes, values or names; training, saving and loading see no difference but `is_contiguous()`. In bfloat16
rows are better, and `product` (model/blocks/part.py) reads them.
"""

import torch
from torch import nn

from isoflop.model.blocks.moe import Experts
from isoflop.model.gpt import GPT


@torch.no_grad()
def lay_out(model: GPT) -> None:
    """Store every weight whose output is at least as wide as its input column by column, the head's too, unless it is
    in bfloat16. On a CPU only; it takes as long as copying those weights once."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    for weight in (*linear, model.head_weight):
        if weight.device.type == "cpu" and weight.dtype != torch.bfloat16 and weight.shape[0] >= weight.shape[1]:
            weight.data = weight.data.t().contiguous().t()


@torch.no_grad()
def narrow(model: GPT) -> None:
    """Round the weights of products and look-ups to bfloat16, so that a token reads half the memory. Norms, statistics
    and routers, which depend on small differences, stay in float32."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, Experts)) and not name.endswith("router"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
