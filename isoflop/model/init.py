"""Initialisations; each is a table: role -> standard deviation. Biases are zero and gains one in all of them.

Each is a pure function of torch's global seed. blocks/part.py (Init) explains the roles.
"""

import math

import torch
from torch import Tensor


class GPT2:
    """GPT-2's initialisation, from its paper (section 2.3) and its code (src/model.py) together.

    | role                | distribution                                                                  |
    |---------------------|-------------------------------------------------------------------------------|
    | matrix, score, head | N(0, std), std = 0.02                                                         |
    | embedding, tied     | N(0, std)                                                                     |
    | value, gate         | N(0, std): GPT-2 has neither                                                  |
    | position            | N(0, 0.01)                                                                    |
    | residual            | N(0, std / sqrt(2 L)): the paper's factor; the released code only runs the    |
    |                     | trained model and does not have it                                            |
    """

    def __init__(self, *, layers: int, std: float = 0.02, position_std: float = 0.01) -> None:
        self.residual_std = std / math.sqrt(2 * max(layers, 1))
        self.std, self.position_std = std, position_std

    def __call__(self, weight: Tensor, role: str) -> None:
        stds = {"position": self.position_std, "residual": self.residual_std}
        normal(weight, stds.get(role, self.std))


class Normal:
    """N(0, std) for every weight, positions and residual projections too: GPT-1 with std = 0.02 (openai/
    finetune-transformer-lm, train.py), and what Hugging Face calls `initializer_range` in Llama and its kind."""

    def __init__(self, *, std: float = 0.02) -> None:
        self.std = std

    def __call__(self, weight: Tensor, role: str) -> None:
        normal(weight, self.std)


class Modern:
    """All branches start at zero, and all matrix products keep the scale of their input at any width.

    | role      | distribution                                                                        |
    |-----------|-------------------------------------------------------------------------------------|
    | matrix    | N(0, gain / sqrt(fan-in)): unit input gives output of size `gain` at every width    |
    | score     | the same                                                                            |
    | residual  | 0: at the start each block passes its input on, so depth needs no factor            |
    | head      | 0: the first loss is ln(V) exactly                                                  |
    | embedding | N(0, embedding_std), by coordinate and so the same at every width                   |
    | tied      | N(0, 0.5 / sqrt(D)): it is the head as well, and logits should start small          |
    | position  | N(0, embedding_std)                                                                 |
    | value     | N(0, gain / sqrt(width)), as nanochat's: small next to values of size `gain`        |
    | gate      | 0: a sigmoid starts half-way                                                        |
    """

    def __init__(self, *, gain: float = 1.0, embedding_std: float = 0.5) -> None:
        self.gain, self.embedding_std = gain, embedding_std

    def __call__(self, weight: Tensor, role: str) -> None:
        width = weight.shape[-1]
        stds = {
            "matrix": self.gain / math.sqrt(width),
            "score": self.gain / math.sqrt(width),
            "residual": 0.0,
            "head": 0.0,
            "embedding": self.embedding_std,
            "tied": 0.5 / math.sqrt(width),
            "position": self.embedding_std,
            "value": self.gain / math.sqrt(width),
            "gate": 0.0,
        }
        normal(weight, stds[role])


class Xavier:
    """N(0, sqrt(2 / (fan-in + fan-out))) for every matrix (Glorot & Bengio 2010, section 4.2.1), including residual
    products and the head, and N(0, embedding_std) for look-up tables, as the theory of Xiong et al. 2020 (2002.04745,
    section 3.2) assumes, with inputs of norm sqrt(D)."""

    def __init__(self, *, embedding_std: float = 1.0) -> None:
        self.embedding_std = embedding_std

    def __call__(self, weight: Tensor, role: str) -> None:
        is_table = role in ("embedding", "position", "value")
        normal(weight, self.embedding_std if is_table else math.sqrt(2 / sum(weight.shape[-2:])))


def normal(weight: Tensor, std: float) -> None:
    if weight.is_meta:
        return  # nothing to fill; a draw on the meta device makes torch import its reference library, half a second
    with torch.no_grad():
        if std:
            weight.normal_(0.0, std)
        else:
            weight.zero_()
