"""Products of a few rows with the weights of a layer, for decoding.

On a CPU in float32 they are kernels of isoflop's own (kernels/decode.c) where these can be used: torch's products
arrange the weights anew in each call, which few rows do not pay for, and read them for one row at less than the speed
of memory.

Letters: R rows, D inputs, C outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isoflop.generate.layout import joined
from isoflop.kernels import decoding
from isoflop.model.blocks.part import FEW_ROWS

MOST_ROWS = 32  # of a product by the kernels; torch's is faster with more
COPIED = 2**19  # numbers: weights that are not next to each other are copied up to this size


class Product:
    """y = x W^T (+ b) with the weights of one or several layers on the same input: as one product where these lie next
    to each other or are small, else as one each.

    Args:
        compiled: by the kernels, for up to MOST_ROWS rows. Weights that are not stored row by row are copied.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], compiled: bool = False) -> None:
        one = joined(weights)
        if one is None and sum(weight.numel() for weight in weights) <= COPIED:
            one = torch.cat(list(weights))
        self.weights = list(weights) if one is None else [one]
        self.biases = list(biases)
        if one is not None:
            given = [bias for bias in biases if bias is not None]
            self.biases = [torch.cat(given) if given else None]
        self.compiled = compiled and len(self.weights) == 1
        if self.compiled and self.weights[0].stride(1) != 1:
            self.weights = [self.weights[0].contiguous()]

    @classmethod
    def of(cls, *layers: nn.Linear, compiled: bool = False) -> "Product":
        biases = [None if layer.bias is None else layer.bias.detach() for layer in layers]
        return cls([layer.weight.detach() for layer in layers], biases, compiled)

    def __call__(self, x_RD: Tensor, y_RC: Tensor) -> Tensor:
        """Write y to `y_RC` and return it."""
        if self.compiled and len(x_RD) <= MOST_ROWS:
            return decoding.product_(y_RC, x_RD, self.weights[0], self.biases[0])
        begin = 0
        for weight_CD, bias_C in zip(self.weights, self.biases, strict=True):
            part_RC = y_RC if len(self.weights) == 1 else y_RC[:, begin : begin + len(weight_CD)]
            begin += len(weight_CD)
            if weight_first(weight_CD, x_RD):
                part_RC.copy_(times(weight_CD, x_RD))
                if bias_C is not None:
                    part_RC.add_(bias_C)
            elif bias_C is None:
                torch.mm(x_RD, weight_CD.t(), out=part_RC)
            else:
                torch.addmm(bias_C, x_RD, weight_CD.t(), out=part_RC)
        return y_RC

    def add_to(self, sum_RC: Tensor, x_RD: Tensor) -> None:
        """Add y to `sum_RC`. Of a product with one layer."""
        weight_CD, bias_C = self.weights[0], self.biases[0]
        if self.compiled and len(x_RD) <= MOST_ROWS:
            decoding.product_(sum_RC, x_RD, weight_CD, bias_C, add=True)
            return
        if bias_C is not None:
            sum_RC.add_(bias_C)
        if weight_first(weight_CD, x_RD):
            sum_RC.add_(times(weight_CD, x_RD))
        else:
            sum_RC.addmm_(x_RD, weight_CD.t())


def weight_first(weight_CD: Tensor, x_RD: Tensor) -> bool:
    """Whether W x^T is faster than x W^T, as in `product` (model/blocks/part.py)."""
    return weight_CD.dtype == torch.bfloat16 and len(x_RD) <= FEW_ROWS


def times(weight_CD: Tensor, x_RD: Tensor) -> Tensor:
    """(W x^T)^T, (R, C)."""
    if len(x_RD) == 1:
        return torch.mv(weight_CD, x_RD[0]).unsqueeze(0)
    return torch.mm(weight_CD, x_RD.t()).t()
