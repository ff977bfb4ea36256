"""Models at initialisation on one batch: gradients and activations by layer, and their trend with depth. Nothing is
trained.

With `options.depths` the same model is built at each of these numbers of layers; measures by layer are those of the
deepest.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured, log10, slope
from isoflop.model.build import build_model
from isoflop.model.config import MOST_LAYERS
from isoflop.runtime import seed_everything
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task

MEASURES = (
    "first_over_last",
    "gradient_per_layer",
    "first_gradient_by_depth",
    "last_gradient_by_depth",
    "activation_per_layer",
    "rank_residual",
    "seconds",
)


@dataclass(frozen=True)
class Layers:
    """Measures of one backward pass, by layer: norm of the gradient of all its weights, root mean square of its output,
    rank residual of its output; and the norm of the gradient of the last matrix of the last layer's feed-forward branch
    (of its attention if it has none)."""

    gradients: list[float]
    activations: list[float]
    residuals: list[float]
    last: float


def initial(job: Job) -> Measured:
    """Measures of a model at initialisation:

    first_over_last           log10 of the gradient's norm in the first layer over that in the last
    gradient_per_layer        slope of log10 of the gradient's norm over the layers; above 0: smaller towards the input
    first_gradient_by_depth   slope of log10 of the first layer's gradient on the number of layers: below 0 it vanishes
                              as the network gets deep
    last_gradient_by_depth    slope of the logarithm of the gradient of the last layer's W2 on the logarithm of the
                              number of layers (Xiong et al. 2020, figure 3: about 0 after, -1/2 before)
    activation_per_layer      slope of log10 of the output's root mean square over the layers
    rank_residual             log10 of |x - mean over positions| / |x| after the last layer (Dong et al. 2021,
                              2103.03404): very small where all positions have become the same vector

    A gradient of 0 or one that overflows is at the end of the scale of single precision, log10 = -38 and 38.
    """
    depths = depths_of(job)
    first = batch(job)
    found = {depth: look(with_depth(job.config, depth), first) for depth in depths}

    # by layer of the deepest, and by depth
    deepest = found[depths[-1]]
    gradients = [log10(value) for value in deepest.gradients]
    layers = [float(index + 1) for index in range(len(gradients))]
    firsts = [log10(found[depth].gradients[0]) for depth in depths]
    lasts = [math.log(10) * log10(found[depth].last) for depth in depths]

    measures = {
        "first_over_last": gradients[0] - gradients[-1],
        "gradient_per_layer": slope(layers, gradients),
        "first_gradient_by_depth": slope([float(depth) for depth in depths], firsts),
        "last_gradient_by_depth": slope([math.log(depth) for depth in depths], lasts),
        "activation_per_layer": slope(layers, [log10(value) for value in deepest.activations]),
        "rank_residual": log10(deepest.residuals[-1]),
        "seconds": 0.0,
    }
    lists = {
        "layer": layers,
        "log10_gradient": gradients,
        "log10_activation": [log10(value) for value in deepest.activations],
        "log10_residual": [log10(value) for value in deepest.residuals],
        "depth": [float(depth) for depth in depths],
        "log10_first_gradient": firsts,
        "log10_last_gradient": [log10(found[depth].last) for depth in depths],
    }
    return Measured({name: clipped(value) for name, value in measures.items()}, lists)


def depths_of(job: Job) -> list[int]:
    given = job.options.get("depths", [job.config.model.layers])
    ok = isinstance(given, (list, tuple)) and given and all(type(d) is int and 1 <= d <= MOST_LAYERS for d in given)
    if not ok or list(given) != sorted(set(given)):
        raise UserError(f"options.depths = {given!r} are not rising numbers of layers, as in [2, 4, 8]")
    return list(given)


def with_depth(config: RunConfig, layers: int) -> RunConfig:
    return replace(config, model=replace(config.model, layers=layers))


def batch(job: Job) -> tuple[Tensor, ...]:
    """The first batch of a run in this order."""
    task: Any = make_task(job.config)
    prepared = task.prepare_data(job.config.data)
    first: tuple[Tensor, ...] = task.batches(replace(job.config, seed=job.order), prepared).batch(0)
    return first


def look(config: RunConfig, inputs: tuple[Tensor, ...]) -> Layers:
    """One forward and one backward pass of a fresh model in single precision, on the inputs of the task's loss."""
    seed_everything(config.seed)
    model: Any = build_model(config.task, config.model)
    task = make_task(config)
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: outputs.append(out.detach())) for block in model.blocks]
    task.loss(model, *inputs).backward()
    for hook in hooks:
        hook.remove()
    return Layers(
        gradients=[norm_of(block.parameters()) for block in model.blocks],
        activations=[float(x_BTD.square().mean().sqrt()) for x_BTD in outputs],
        residuals=[rank_residual(x_BTD) for x_BTD in outputs],
        last=norm_of([last_matrix(model.blocks[-1])]),
    )


def norm_of(parameters: Any) -> float:
    """The norm of the gradients of some parameters, in double precision so that small ones are not rounded to 0."""
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def last_matrix(block: nn.Module) -> nn.Parameter:
    """The matrix that ends a block's last branch."""
    matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
    for name, parameter in block.named_parameters():
        if name == "feed_forward.down.weight":
            return parameter
    return matrices[-1]


def rank_residual(x_BTD: Tensor) -> float:
    """|x - its mean over positions| / |x|, Frobenius norms over the whole batch."""
    x = x_BTD.double()
    size = float(x.norm())
    return float((x - x.mean(1, keepdim=True)).norm()) / size if size > 0 and math.isfinite(size) else 0.0


def clipped(value: float) -> float:
    return max(-1e6, min(1e6, value)) if not math.isnan(value) else 0.0
