"""A run's recipe (task, blocks, loss, optimiser, schedule), and how it differs from that of the prior's runs.

All runs of prior.json have one recipe, and forecasts from them hold for runs with this recipe. A run with another
wiring, optimiser or schedule can be far better or far worse, and an interval measured with one recipe does not say by
how much. Such a run is forecast from pilots with its own recipe (pilot.py), or not at all.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from isoflop.config import to_dict, to_key
from isoflop.data.packing import RUNNING
from isoflop.model.config import SIZES
from isoflop.model.presets import heads_for
from isoflop.optim.config import OptimConfig
from isoflop.optim.table import rates
from isoflop.plan.prior import table
from isoflop.plan.settings import batch_tokens_for, context_for, with_decay, with_rates
from isoflop.trainer import RunConfig
from isoflop.trainer.task import task_named

# The largest factor, up or down, between a learning rate, head width, context or batch and the plan's own choice with
# which the recipe still counts as the prior's. Chosen, not measured.
NEAR_RATE, NEAR_HEAD, NEAR_CONTEXT, NEAR_BATCH = 2.0, 2.0, 4.0, 4.0


def recipe_of(config: RunConfig) -> dict[str, Any]:
    """The recipe as a JSON object: task, blocks, loss, optimiser and schedule. Not part of it: sizes, learning rates
    (which depend on the size), the factor on weight decay (which depends on how often the text is read), whether value
    embeddings are in every layer or every second, and fields that decide only where and how fast a run is computed."""
    plain: dict[str, Any] = to_key(config)
    model = {name: value for name, value in plain["model"].items() if name not in SIZES}
    if model["value_embedding"] in (1, 2):  # every layer or every second: which one depends on the width
        model["value_embedding"] = 1
    optim = {name: value for name, value in plain["optim"].items() if name not in rates(config.optim.entry)}
    optim.pop("weight_decay_factor", None)
    if "matrix_lr" not in rates(config.optim.entry):
        optim.pop("matrix_lr", None)  # not used by this optimiser

    return {
        "task": config.task,
        "model": model,
        "loss": plain["loss"],
        "optim": optim,
        "schedule": plain["schedule"],
        "ramp": bool(config.batch.ramp_from),
        "init": bool(config.init),
        **({"average": plain["average"]} if "average" in plain else {}),
        **({"context grows": True} if config.batch.context_from else {}),
        **({"windows": config.batch.windows} if config.batch.windows != RUNNING else {}),
        **({"document_mask": True} if config.batch.document_mask else {}),
    }


def prior_recipe() -> dict[str, Any]:
    """The recipe of the prior's runs."""
    return dict(table()["recipe"])


def differences(config: RunConfig) -> tuple[str, ...]:
    """How a run's recipe differs from the prior's, one string per setting with both values; empty if it does not."""
    own, prior = flat(recipe_of(config)), flat(prior_recipe())
    default = flat(to_dict(RunConfig()))  # of fields that the prior's recipe does not have
    settings = [
        f"{name} = {' and not '.join(in_words(own.get(name), prior.get(name, default.get(name))))}"
        for name in dict.fromkeys([*own, *prior])
        if own.get(name) != prior.get(name)
    ]
    if settings:  # learning rates follow another rule then, so that comparing them says nothing
        return tuple(settings)

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


def decay_differs(config: RunConfig, epochs: float) -> tuple[str, ...]:
    """The factor on weight decay, as `differences` would name it, if it is not that of a plan for so many epochs."""
    own, planned = (one.optim.weight_decay_factor for one in (config, with_decay(config, epochs)))
    return () if own == planned else (f"optim.weight_decay_factor = {own:g} and not {planned:g}",)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested objects by dotted name. A block counts as one leaf: its name and options belong together."""
    if isinstance(value, dict) and (not prefix or prefix in ("model", "optim", "schedule")):
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in flat(inner, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def in_words(own: Any, prior: Any) -> tuple[str, str]:
    """Two different values in words: blocks by name, or in full if their names are equal."""
    named = [value.get("name", value) if isinstance(value, dict) else value for value in (own, prior)]
    first, second = named if named[0] != named[1] else (own, prior)
    return str(first), str(second)


def recipe_key(config: RunConfig, differs: Sequence[str] | None = None) -> str:
    """A hash of the recipe and of how it differs from the prior's, by which pilots with the same recipe are found on
    record.

    Args:
        differs: None: the `differences` of the configuration.
    """
    whole = {**recipe_of(config), "differs": differences(config) if differs is None else tuple(differs)}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
