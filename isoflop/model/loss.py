"""Training losses by name: the table LOSSES and its entries.

A loss is for training only: held-out text is always measured by plain cross-entropy (measure.py). All losses use one
chunked kernel (cross_entropy.py), which never holds all logits.

Adding a loss takes one class and one line in the table. A class that only adds terms to cross-entropy sets `options`;
one that needs other hidden states or targets overrides `__call__`; one that needs further modules during training
overrides `prepare`.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.cross_entropy import IGNORED, PLAIN, HasHead, LossOptions, head_loss
from isoflop.model.gpt import GPT
from isoflop.model.registry import Entry, make


class CrossEntropy:
    """-ln p(next token), the mean over the tokens of a pass; the base of the other losses.

    Attributes:
        decoder_only: True if the loss needs a GPT, not an encoder-decoder.
        options: terms added to plain cross-entropy, and how it is computed.
    """

    decoder_only: ClassVar[bool] = False
    options: LossOptions = PLAIN

    def prepare(self, model: GPT) -> None:
        """Add the modules that only training needs to the model. Called once, before its optimisers are built."""

    def compile(self) -> None:
        """Use one compiled kernel between the matrix products of the head from now on."""
        self.options = replace(self.options, compiled=True)

    def use_kernels(self) -> None:
        """Use the kernels of isoflop/kernels between the matrix products of the head from now on."""
        self.options = replace(self.options, kernels=True)

    def __call__(self, model: GPT, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """The loss of one pass, a scalar with gradient, in nats. `documents_BT`: see GPT.hidden."""
        h_BTD = model.hidden(inputs_BT) if documents_BT is None else model.hidden(inputs_BT, None, documents_BT)
        return self.of(model, h_BTD, targets_BT)

    def of(self, model: HasHead, h_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """The loss of the head's logits for h_BTD."""
        return head_loss(model, h_BTD, targets_BT, self.options)


class LabelSmoothing(CrossEntropy):
    """Cross-entropy with a target distribution of 1 - eps on the next token and eps uniformly over all V ids (Szegedy
    et al. 2015, 1512.00567, section 7; Vaswani et al. 2017 with eps = 0.1)."""

    def __init__(self, *, eps: float = 0.1) -> None:
        if not 0.0 <= eps < 1.0:
            raise UserError(f"eps = {eps:g} is not in [0, 1)")
        self.options = LossOptions(smoothing=eps)


class ZLoss(CrossEntropy):
    """Cross-entropy + coefficient * (ln Z)^2, Z the sum of the exponentials of the logits: keeps ln Z near 0 (PaLM,
    Chowdhery et al. 2022, 2204.02311, section 5, with 1e-4)."""

    def __init__(self, *, coefficient: float = 1e-4) -> None:
        if not coefficient >= 0.0:
            raise UserError(f"coefficient = {coefficient:g} is negative; 0 is plain cross-entropy")
        self.options = LossOptions(z=coefficient)


class MultiToken(CrossEntropy):
    """Multi-token prediction: the sum of n cross-entropies, for the next token and the second to n-th after it, each
    from its own head on one trunk (Gloeckle et al. 2024, 2404.19737, equation 2; mtp.py has the heads).

    The trained model is the same as without this loss: the further heads exist during training only; evaluation,
    sampling and readers of a checkpoint ignore them. Near the end of a sequence a head has no target; such positions
    are not counted.

    Options: `tokens`, n; the paper's best for code is 4.

    Raises:
        UserError: for n below 2 or above the context, and for a model without blocks.
    """

    decoder_only = True

    def __init__(self, *, model: ModelConfig, tokens: int = 4) -> None:
        if not 2 <= tokens <= model.context:
            raise UserError(f"tokens = {tokens} is not between 2 and model.context = {model.context}")
        if model.layers < 1:
            raise UserError("its heads need a last block, and model.layers = 0 has none; use cross_entropy")
        self.tokens = tokens

    def prepare(self, model: GPT) -> None:
        model.add_mtp_heads(self.tokens - 1)

    def __call__(self, model: GPT, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        losses = [
            self.of(model, h_BTD, later(targets_BT, distance))
            for distance, h_BTD in enumerate(model.hidden_mtp(inputs_BT, documents_BT))
        ]
        return torch.stack(losses).sum()


LOSSES: dict[str, Entry] = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "z_loss": ZLoss,
    "multi_token": MultiToken,
}


def make_loss(spec: Spec, model: ModelConfig) -> CrossEntropy:
    """Raises:
    UserError: for an unknown loss or option, or one that the model cannot use.
    """
    loss: CrossEntropy = make(LOSSES, spec, "loss", model=model)
    return loss


def name_of(loss: CrossEntropy) -> str:
    """The name of a loss in the table, for messages; if it is not there, the name of its class."""
    return next((name for name, kind in LOSSES.items() if type(loss) is kind), type(loss).__name__)


def later(targets_BT: Tensor, distance: int) -> Tensor:
    """The targets `distance` positions later, -100 beyond the end of the sequence."""
    if distance == 0:
        return targets_BT
    ended = torch.full_like(targets_BT[:, :distance], IGNORED)
    return torch.cat((targets_BT[:, distance:], ended), dim=1)
