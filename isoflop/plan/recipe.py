"""What decides how good a run is besides its size, its length and its text: the recipe.

The prior's runs were all made with one recipe (prior.json). What they say holds for runs that are made like them; a run
with another wiring, optimiser or schedule can be far better or far worse, and no interval that was measured with the
one recipe says by how much. Such a run has a forecast from pilots of its very recipe (pilot.py), or none.
"""

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

from isoflop.config import to_dict
from isoflop.model.presets import heads_for
from isoflop.optim.config import OptimConfig
from isoflop.optim.table import rates
from isoflop.plan.prior import table
from isoflop.plan.settings import batch_tokens_for, context_for, with_rates
from isoflop.trainer import RunConfig
from isoflop.trainer.task import task_named

SIZES = ("vocab_size", "context", "layers", "encoder_layers", "d_model", "heads", "head_dim")  # of ModelConfig
# How many times more or less than the plan's own choice a rate, the width of a head, the context or the batch may be.
# Chosen and not measured.
NEAR_RATE, NEAR_HEAD, NEAR_CONTEXT, NEAR_BATCH = 2.0, 2.0, 4.0, 4.0


def recipe_of(config: RunConfig) -> dict[str, Any]:
    """The recipe as JSON: task, blocks, loss, optimiser and schedule. Sizes, learning rates, which go with the size,
    and what only decides where and how fast it is computed are not part of it."""
    plain: dict[str, Any] = to_dict(config)
    model = {name: value for name, value in plain["model"].items() if name not in SIZES}
    optim = {name: value for name, value in plain["optim"].items() if name not in rates(config.optim.entry)}
    if "matrix_lr" not in rates(config.optim.entry):
        optim.pop("matrix_lr", None)  # an optimiser that has no use for it
    return {
        "task": config.task,
        "model": model,
        "loss": plain["loss"],
        "optim": optim,
        "schedule": plain["schedule"],
        "ramp": bool(config.batch.ramp_from),
        "init": bool(config.init),
    }


def prior_recipe() -> dict[str, Any]:
    """The recipe of the prior's runs."""
    return dict(table()["recipe"])


def is_other(config: RunConfig) -> bool:
    """Whether the recipe is not that of the prior's runs."""
    return recipe_of(config) != prior_recipe()


def differences(config: RunConfig) -> tuple[str, ...]:
    """What a run does otherwise than those of the prior, in words: settings with both values. Empty: nothing."""
    mine, theirs = flat(recipe_of(config)), flat(prior_recipe())
    found = [
        f"{name} = {' and not '.join(told_apart(mine.get(name), theirs.get(name)))}"
        for name in dict.fromkeys([*mine, *theirs])
        if mine.get(name) != theirs.get(name)
    ]
    if found:  # its rates have another rule, and what more there is to say is no news
        return tuple(found)

    planned = with_rates(replace(config, optim=OptimConfig(name=config.optim.name))).optim
    pairs = [
        (f"optim.{name}", rate, rates(planned.entry)[name], NEAR_RATE)
        for name, rate in rates(config.optim.entry).items()
        if rates(OptimConfig(name=config.optim.name).entry)[name]
    ]
    if task_named(config.task).static_shapes:
        context = context_for(6.0 * config.tokens**2 / 20)
        usual = config.model.d_model / heads_for(config.model.d_model)
        pairs.append(("the width of a head", float(config.model.head_width), usual, NEAR_HEAD))
        pairs.append(("model.context", float(config.model.context), float(context), NEAR_CONTEXT))
        pairs.append(("tokens of a step", float(config.tokens_per_step), batch_tokens_for(config.tokens), NEAR_BATCH))
    return tuple(
        f"{name} = {value:,.4g} and not about {usual:,.4g}"
        for name, value, usual, near in pairs
        if abs(math.log(value / usual)) > math.log(near) * 1.01
    )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects by dotted names. A block is one leaf: its name and settings belong together."""
    if isinstance(value, dict) and (not prefix or prefix in ("model", "optim", "schedule")):
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in flat(inner, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def told_apart(mine: Any, theirs: Any) -> tuple[str, str]:
    """Two values in words: blocks by their names, or in full where these are the same."""
    named = [value.get("name", value) if isinstance(value, dict) else value for value in (mine, theirs)]
    first, second = named if named[0] != named[1] else (mine, theirs)
    return str(first), str(second)


def recipe_key(config: RunConfig) -> str:
    """A digest of the recipe and of what else is unlike the plan's own choice, for pilots of that very recipe."""
    whole = {**recipe_of(config), "differs": differences(config)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
