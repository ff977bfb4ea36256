"""Measures of a model on a probe batch: one function per measure, which returns numbers by layer.

Layers are called "input" (token embedding, positions), "1" to "L" (the model's units in the order of the forward pass;
the encoder's first) and "output" (the rest: final norm, head, further heads). A layer without a measure is missing from
it. All measures run the model in training mode, so that a norm over the batch behaves as in training, and with the same
dropout masks each time. They change the model's gradients and buffers; a run therefore passes a copy.

`loss` is the loss of a task: a function of the model and the batch.
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
from isoflop.model.gpt import GPT

Batch = Sequence[Tensor]
Loss = Callable[..., Tensor]
ByLayer = dict[str, float]

INPUT, OUTPUT = "input", "output"
INPUT_PREFIXES = ("embedding.", "position.", "embedding_norm.")  # names of the parameters of "input"
RELATIVE_STEP = 1e-3  # of the finite difference along the gradient, relative to the weights' norm
SEED = 0  # of the dropout masks


def layers(model: Model) -> dict[str, list[nn.Parameter]]:
    """The parameters of each layer. A shared parameter belongs to the first layer that has it."""
    by_layer: dict[str, list[nn.Parameter]] = {INPUT: []}
    in_units: set[int] = set()
    for number, unit in enumerate(model.units(), 1):
        by_layer[str(number)] = [parameter for parameter in unit.parameters() if id(parameter) not in in_units]
        in_units |= {id(parameter) for parameter in by_layer[str(number)]}
    by_layer[OUTPUT] = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in in_units:
            by_layer[INPUT if name.startswith(INPUT_PREFIXES) else OUTPUT].append(parameter)
    return {name: parameters for name, parameters in by_layer.items() if parameters}


@contextlib.contextmanager
def same_random_state(device: torch.device) -> Iterator[None]:
    """A context with the same dropout masks each time, which leaves torch's generators unchanged."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield


def gradients(model: Model, loss: Loss, batch: Batch, parameters: Sequence[nn.Parameter]) -> tuple[float, list[Tensor]]:
    """The loss, and its gradients with respect to some parameters; zeros for those that it does not depend on."""
    model.train()
    with same_random_state(batch[0].device):
        value = loss(model, *batch)
        raw = torch.autograd.grad(value, list(parameters), allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, raw, strict=True)]
    return float(value.detach()), filled


def hidden_of(model: Any, inputs: Batch) -> Tensor:
    """h_BTD, the input of the head, for the inputs of the task's model."""
    if isinstance(model, GPT):
        tokens_BT, *documents = inputs
        return model.hidden(tokens_BT, None, *documents)
    h_BTD: Tensor = model.hidden(*inputs)
    return h_BTD


def norm_of(tensors: Sequence[Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(list(tensors)))


def gradient_norms(model: Model, loss: Loss, batch: Batch) -> ByLayer:
    """The norm of the loss's gradient with respect to the parameters of each layer."""
    groups = layers(model)
    parameters = [parameter for group in groups.values() for parameter in group]
    _, values = gradients(model, loss, batch, parameters)
    by_parameter = {id(parameter): gradient for parameter, gradient in zip(parameters, values, strict=True)}
    return {name: norm_of([by_parameter[id(p)] for p in group]) for name, group in groups.items()}


@torch.no_grad()
def activations(model: Model, batch: Batch) -> dict[str, ByLayer]:
    """Measures of the output x_BTD of each unit:

    activation_norm    its root mean square
    rank_residual      ||x - mean||_F / ||x||_F per sequence, with the mean over its positions: 0 if all positions are
                       equal (Dong et al. 2021, 2103.03404, with the Frobenius norm)
    attention_entropy  entropy of the attention weights, relative to uniform weights on all visible keys
    load_entropy       entropy of the assignment of tokens to experts (blocks/moe.py), if there are experts
    """
    by_measure: dict[str, ByLayer] = {"activation_norm": {}, "rank_residual": {}, "attention_entropy": {}}
    entropy = AttentionEntropy()
    handles = []
    for number, unit in enumerate(model.units(), 1):
        name = str(number)

        def enter_layer(module: nn.Module, inputs: Any, name: str = name) -> None:
            entropy.layer = name

        def record_output(module: nn.Module, inputs: Any, x_BTD: Tensor, name: str = name) -> None:
            x = x_BTD.float()
            by_measure["activation_norm"][name] = float(x.square().mean().sqrt())
            residual = (x - x.mean(1, keepdim=True)).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp(min=1e-30)
            by_measure["rank_residual"][name] = float(residual.mean())

        handles += [unit.register_forward_pre_hook(enter_layer), unit.register_forward_hook(record_output)]
    model.train()
    try:
        with same_random_state(batch[0].device), entropy:
            hidden_of(model, batch[:-1])
    finally:
        for handle in handles:
            handle.remove()
        model.auxiliary_loss()  # clears it, so that the next training loss does not include it
    by_measure["attention_entropy"] = {name: total / count for name, (total, count) in entropy.sums.items()}

    for number, unit in enumerate(model.units(), 1):
        for module in unit.modules():
            for reading, value in getattr(module, "readings", dict)().items():
                by_measure.setdefault(reading, {})[str(number)] = value
    return {name: values for name, values in by_measure.items() if values}


class AttentionEntropy(TorchFunctionMode):
    """Records the entropy of the attention weights in a forward pass without gradients, for every kernel that a model
    may use there: torch's fused one, and softmax over the scores.

    Attributes:
        layer: the layer that computes now.
        sums: by layer, the sum of the entropies and the number of calls. Queries that see one key are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""
        self.sums: dict[str, tuple[float, int]] = {}

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
        max_entropy = (weights > 0).sum(-1).float().log()
        has_choice = max_entropy > 0
        if self.layer and has_choice.any():
            shares = torch.special.entr(weights).sum(-1)[has_choice] / max_entropy[has_choice]
            total, count = self.sums.get(self.layer, (0.0, 0))
            self.sums[self.layer] = total + float(shares.mean()), count + 1


def weights_of(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSV: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention weights, (B, H, T, S), that F.scaled_dot_product_attention computes for the same arguments."""
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
    """How much the future affects earlier positions, in training mode: the change of the hidden states before the last
    position when the last token of each sequence is replaced, relative to their norm. 0 for a causal model; a norm over
    batch and time leaks."""
    *inputs, targets_BT = batch
    changed_BT = inputs[-1].clone()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % model.config.vocab_size
    model.train()
    hidden = []
    for decoder_inputs in (inputs[-1], changed_BT):
        with same_random_state(targets_BT.device):
            hidden.append(hidden_of(model, [*inputs[:-1], decoder_inputs])[:, :-1].float())
    model.auxiliary_loss()
    return float((hidden[1] - hidden[0]).norm() / hidden[0].norm().clamp(min=1e-30))


def sharpness(model: Model, loss: Loss, batch: Batch) -> float:
    """The second derivative of the loss along its own gradient, g'Hg / g'g, by central differences of the gradient."""
    parameters = list(model.parameters())
    _, gradient = gradients(model, loss, batch, parameters)
    length, size = norm_of(gradient), norm_of([parameter.detach() for parameter in parameters])
    if length == 0 or size == 0:
        return 0.0
    distance = RELATIVE_STEP * size / length
    side_gradients = []
    for side in (distance, -distance):
        with shifted(parameters, gradient, side):
            side_gradients.append(gradients(model, loss, batch, parameters)[1])
    curvature = sum(
        float((g * (after - before)).sum()) for g, after, before in zip(gradient, *side_gradients, strict=True)
    )
    return curvature / (2 * distance * length**2)


@contextlib.contextmanager
def shifted(parameters: Sequence[nn.Parameter], direction: Sequence[Tensor], distance: float) -> Iterator[None]:
    """A context with the parameters moved by `distance` times `direction`; they are restored bit for bit."""
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, step in zip(parameters, direction, strict=True):
                parameter.add_(step, alpha=distance)
        yield
    finally:
        copy_into(parameters, originals)


@torch.no_grad()
def copy_into(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def update_ratios(before: Mapping[str, Sequence[Tensor]], after: Mapping[str, Sequence[Tensor]]) -> ByLayer:
    """The norm of an update relative to the norm of the weights, by layer. `before` and `after` are by layer too."""
    ratios = {}
    for name, old_weights in before.items():
        size = norm_of(old_weights)
        if size > 0:
            ratios[name] = norm_of([b - a for a, b in zip(old_weights, after[name], strict=True)]) / size
    return ratios


def covariate_shift(
    model: Model, loss: Loss, batch: Batch, after: Mapping[str, Sequence[Tensor]]
) -> tuple[ByLayer, ByLayer]:
    """Internal covariate shift as defined by Santurkar et al. 2018 (1805.11604, definition 2.1): the change of the
    gradient of a layer when only the layers below it are updated, relative to its norm.

    Args:
        model: with the weights before the update; they are restored.
        after: the weights after the update, by layer.

    Returns:
        By layer, the shift, and the cosine between the gradients before and after.
    """
    groups = layers(model)
    before = {name: [parameter.detach().clone() for parameter in group] for name, group in groups.items()}
    parameters = [parameter for group in groups.values() for parameter in group]
    _, values = gradients(model, loss, batch, parameters)
    by_parameter = {id(parameter): gradient for parameter, gradient in zip(parameters, values, strict=True)}

    shift, cosine = {}, {}
    try:
        for name, group in groups.items():
            if name != INPUT:  # nothing is below it
                old_gradient = [by_parameter[id(parameter)] for parameter in group]
                _, new_gradient = gradients(model, loss, batch, group)
                old_norm, new_norm = norm_of(old_gradient), norm_of(new_gradient)
                if old_norm > 0 and new_norm > 0:
                    shift[name] = norm_of([b - a for a, b in zip(old_gradient, new_gradient, strict=True)]) / old_norm
                    product = sum(float((a * b).sum()) for a, b in zip(old_gradient, new_gradient, strict=True))
                    cosine[name] = product / (old_norm * new_norm)
            copy_into(group, after[name])
    finally:
        for name, group in groups.items():
            copy_into(group, before[name])
    return shift, cosine
