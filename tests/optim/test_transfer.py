"""Rates and initialisation transfer: the change of each layer's output per step hardly depends on width or depth.

The coordinate check of Yang et al. 2022 (2203.03466, appendix D.1): train a few steps at several widths with the rates
that the plan gives each, and see that no activation's change grows or dies with the width. Rates that are right at one
size are then near right at all.
"""

import math
from collections.abc import Callable

import torch

from isoflop.model.gpt import GPT
from isoflop.model.presets import modern
from isoflop.optim.build import build, set_lr
from isoflop.plan.settings import with_rates
from isoflop.trainer import RunConfig

STEPS = 8
TOKENS = torch.randint(256, (8, 33), generator=torch.Generator().manual_seed(1))


def changes(layers: int, d_model: int, rated: Callable[[RunConfig], RunConfig] = with_rates) -> dict[str, float]:
    """Root mean square change of each point's activations over STEPS steps, by name."""
    torch.manual_seed(0)
    config = rated(RunConfig(model=modern(vocab_size=256, context=32, layers=layers, d_model=d_model)))
    model = GPT(config.model)
    optimizers = build(model, config.optim, torch.float32)
    before = activations(model)
    for step in range(STEPS):
        set_lr(optimizers, (step + 1) / STEPS)
        torch.nn.functional.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    after = activations(model)
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


def activations(model: GPT) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    last = len(model.blocks) - 1
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.detach()))
        for name, module in (
            ("embedding", model.embedding),
            ("first attention", model.blocks[0].attention),
            ("first feed-forward", model.blocks[0].feed_forward),
            ("last attention", model.blocks[last].attention),
            ("last feed-forward", model.blocks[last].feed_forward),
            ("stream", model.blocks[last]),
        )
    ]
    with torch.no_grad():
        seen["logits"] = model(TOKENS[:, :-1])
    for hook in hooks:
        hook.remove()
    return seen


def spread(found: dict[int, dict[str, float]]) -> dict[str, float]:
    """Each point's slope: d log(change) / d log(size), by least squares."""
    sizes = torch.tensor([math.log(size) for size in found])
    centred = sizes - sizes.mean()
    slopes = {}
    for name in next(iter(found.values())):
        changed = torch.tensor([math.log(of[name]) for of in found.values()])
        slopes[name] = float((centred * changed).sum() / centred.square().sum())
    return slopes


def test_updates_neither_grow_nor_vanish_with_the_width():
    slopes = spread({d: changes(2, d) for d in (64, 128, 256)})
    assert {name: slope for name, slope in slopes.items() if abs(slope) > 0.2} == {}


def test_a_rate_that_ignores_the_width_is_detected():
    """The check can fail: one rate for the head at every width."""
    slopes = spread({d: changes(2, d, lambda config: config) for d in (64, 128, 256)})
    assert slopes["logits"] > 0.5


def test_the_logits_change_per_step_hardly_depends_on_the_depth():
    """The stream's change grows, since each of L branches adds to it; the final norm takes that out."""
    slopes = spread({layers: changes(layers, 128) for layers in (2, 4, 8, 16)})
    assert abs(slopes["logits"]) < 0.35
    assert abs(slopes["stream"]) < 0.6
