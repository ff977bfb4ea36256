"""Measures of a model on a probe batch: one function each, numbers by layer out.

Layers are called "input" (token table, positions), "1" to "L" (the model's units in the order of their forward, of an
encoder-decoder the encoder's first) and "output" (the rest: final norm, head, further heads). A measure that a layer
does not have is missing for it. Everything is done in training mode, in which a norm over the batch is what it is while
training, and with the same dropout masks each time; models are left with other gradients and buffers than they had, so
that a run hands in a copy.

`loss` is a function of the batch: the task's, of a model.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from isoflop.model.build import Model

Batch = Sequence[Tensor]
Loss = Callable[..., Tensor]
ByLayer = dict[str, float]

INPUT, OUTPUT = "input", "output"
ENTERS = ("embedding.", "position.", "embedding_norm.")  # parameters of "input", by the beginning of their name
STEP = 1e-3  # of the weights' norm: how far sharpness looks along the gradient
SEED = 0  # of the dropout masks


def layers(model: Model) -> dict[str, list[nn.Parameter]]:
    """The parameters of each layer, each parameter once."""
    found: dict[str, list[nn.Parameter]] = {INPUT: []}
    within: set[int] = set()
    for number, unit in enumerate(model.units(), 1):
        found[str(number)] = [parameter for parameter in unit.parameters() if id(parameter) not in within]
        within |= {id(parameter) for parameter in found[str(number)]}
    found[OUTPUT] = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in within:
            found[INPUT if name.startswith(ENTERS) else OUTPUT].append(parameter)
    return {name: parameters for name, parameters in found.items() if parameters}


@contextlib.contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """The same dropout masks each time, and the generators as they were afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield


def gradients(model: Model, loss: Loss, batch: Batch, of: Sequence[nn.Parameter]) -> tuple[float, list[Tensor]]:
    """The loss, and its gradient by some parameters; zeros by those that it does not depend on."""
    model.train()
    with same_draws(batch[0].device):
        value = loss(model, *batch)
        found = torch.autograd.grad(value, list(of), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(of, found, strict=True)]
    return float(value.detach()), filled


def hidden_of(model: Any, inputs: Batch) -> Tensor:
    """h_BTD, what the head reads, of whatever the model of a task takes."""
    h_BTD: Tensor = model.hidden(*inputs)
    return h_BTD


def norm_of(tensors: Sequence[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(list(tensors)))


def gradient_norms(model: Model, loss: Loss, batch: Batch) -> ByLayer:
    """The norm of the loss's gradient by the parameters of each layer."""
    groups = layers(model)
    everything = [parameter for group in groups.values() for parameter in group]
    _, found = gradients(model, loss, batch, everything)
    by_parameter = {id(parameter): gradient for parameter, gradient in zip(everything, found, strict=True)}
    return {name: norm_of([by_parameter[id(p)] for p in group]) for name, group in groups.items()}


@torch.no_grad()
def activations(model: Model, batch: Batch) -> dict[str, ByLayer]:
    """Of what each unit gives to the next, x_BTD:

    activation_norm    its root mean square
    rank_residual      ||x - 1 mean||_F / ||x||_F over each sequence, 1 mean being what all its positions share: 0 where
                       all are alike (Dong et al. 2021, 2103.03404, with the Frobenius norm)
    attention_entropy  of the attention weights, as a share of that of equal weights on all that is visible
    load_entropy       of the tokens' assignment to experts (blocks/moe.py), where there are experts
    """
    found: dict[str, ByLayer] = {"activation_norm": {}, "rank_residual": {}, "attention_entropy": {}}
    watching = AttentionEntropy()
    handles = []
    for number, unit in enumerate(model.units(), 1):
        name = str(number)

        def before(module: nn.Module, inputs: Any, name: str = name) -> None:
            watching.layer = name

        def after(module: nn.Module, inputs: Any, x_BTD: Tensor, name: str = name) -> None:
            x = x_BTD.float()
            found["activation_norm"][name] = float(x.square().mean().sqrt())
            apart = (x - x.mean(1, keepdim=True)).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp(min=1e-30)
            found["rank_residual"][name] = float(apart.mean())

        handles += [unit.register_forward_pre_hook(before), unit.register_forward_hook(after)]
    model.train()
    try:
        with same_draws(batch[0].device), watching:
            hidden_of(model, batch[:-1])
    finally:
        for handle in handles:
            handle.remove()
        model.auxiliary_loss()  # taken away: nobody trains on it
    found["attention_entropy"] = {name: total / count for name, (total, count) in watching.found.items()}

    for number, unit in enumerate(model.units(), 1):
        for module in unit.modules():
            for reading, value in getattr(module, "readings", dict)().items():
                found.setdefault(reading, {})[str(number)] = value
    return {name: values for name, values in found.items() if values}


class AttentionEntropy(TorchFunctionMode):
    """Sees the attention weights of every kernel that a model uses without gradients on its way: torch's fused one,
    and softmax over the scores.

    Attributes:
        layer: that is entered now.
        found: by layer the sum of the entropies and how many calls it is of; where nothing is to be chosen from, a
            query that sees one key, nothing is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""
        self.found: dict[str, tuple[float, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunction():
                self.add(weights_of(*args, **{name: value for name, value in kwargs.items() if name != "dropout_p"}))
        elif func in (Tensor.softmax, torch.softmax, F.softmax) and isinstance(result, Tensor) and result.dim() == 4:
            with torch._C.DisableTorchFunction():
                self.add(result)
        return result

    def add(self, weights_BHTS: Tensor) -> None:
        weights = weights_BHTS.float()
        most = (weights > 0).sum(-1).float().log()
        counted = most > 0
        if self.layer and counted.any():
            shares = torch.special.entr(weights).sum(-1)[counted] / most[counted]
            total, count = self.found.get(self.layer, (0.0, 0))
            self.found[self.layer] = total + float(shares.mean()), count + 1


def weights_of(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention weights, (B, H, T, S), that torch's fused kernel makes of the same arguments and does not show."""
    T, S = q_BHTK.shape[-2], k_BGSK.shape[-2]
    k_BHSK = k_BGSK.repeat_interleave(q_BHTK.shape[1] // k_BGSK.shape[1], 1) if enable_gqa else k_BGSK
    scores = q_BHTK.float() @ k_BHSK.float().transpose(-1, -2) * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(T, S, dtype=torch.bool, device=scores.device).tril(), -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1)


@torch.no_grad()
def leakage(model: Model, batch: Batch) -> float:
    """How much of what is later reaches earlier positions, in training mode: the change of the hidden states before the
    last position when each sequence's last token is another one, as a share of their norm. 0 for a causal model; a norm
    over batch and time leaks."""
    *inputs, targets_BT = batch
    changed_BT = inputs[-1].clone()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % model.config.vocab_size
    model.train()
    found = []
    for last in (inputs[-1], changed_BT):
        with same_draws(targets_BT.device):
            found.append(hidden_of(model, [*inputs[:-1], last])[:, :-1].float())
    model.auxiliary_loss()
    return float((found[1] - found[0]).norm() / found[0].norm().clamp(min=1e-30))


def sharpness(model: Model, loss: Loss, batch: Batch) -> float:
    """The second derivative of the loss along its own gradient, g'Hg / g'g, from the gradients on both sides."""
    parameters = list(model.parameters())
    _, here = gradients(model, loss, batch, parameters)
    length, size = norm_of(here), norm_of([parameter.detach() for parameter in parameters])
    if length == 0 or size == 0:
        return 0.0
    far = STEP * size / length
    sides = []
    for side in (far, -far):
        with moved(parameters, here, side):
            sides.append(gradients(model, loss, batch, parameters)[1])
    along = sum(float((g * (after - before)).sum()) for g, after, before in zip(here, *sides, strict=True))
    return along / (2 * far * length**2)


@contextlib.contextmanager
def moved(parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], far: float) -> Iterator[None]:
    """The parameters moved along a direction, and put back bit for bit."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(step, alpha=far)
        yield
    finally:
        put(parameters, kept)


@torch.no_grad()
def put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def update_ratios(before: Mapping[str, Sequence[Tensor]], after: Mapping[str, Sequence[Tensor]]) -> ByLayer:
    """The norm of an update as a share of the weights' norm, of each layer; both as `layers` divides them."""
    found = {}
    for name, old in before.items():
        size = norm_of(old)
        if size > 0:
            found[name] = norm_of([b - a for a, b in zip(old, after[name], strict=True)]) / size
    return found


def covariate_shift(
    model: Model, loss: Loss, batch: Batch, after: Mapping[str, Sequence[Tensor]]
) -> tuple[ByLayer, ByLayer]:
    """Internal covariate shift as Santurkar et al. 2018 define it (1805.11604, definition 2.1): how the gradient by a
    layer changes when the layers below it take their update and it does not, over its norm; and the cosine of both.

    Args:
        model: with the weights before the update; it has them again afterwards.
        after: the weights after the update, by layer.
    """
    groups = layers(model)
    before = {name: [parameter.detach().clone() for parameter in group] for name, group in groups.items()}
    everything = [parameter for group in groups.values() for parameter in group]
    _, found = gradients(model, loss, batch, everything)
    by_parameter = {id(parameter): gradient for parameter, gradient in zip(everything, found, strict=True)}

    shift, cosine = {}, {}
    try:
        for name, group in groups.items():
            if name != INPUT:  # nothing is below it
                here = [by_parameter[id(parameter)] for parameter in group]
                _, there = gradients(model, loss, batch, group)
                size, other = norm_of(here), norm_of(there)
                if size > 0 and other > 0:
                    shift[name] = norm_of([b - a for a, b in zip(here, there, strict=True)]) / size
                    along = sum(float((a * b).sum()) for a, b in zip(here, there, strict=True))
                    cosine[name] = along / (size * other)
            put(group, after[name])
    finally:
        for name, group in groups.items():
            put(group, before[name])
    return shift, cosine
