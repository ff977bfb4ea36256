"""Notes about settings that are far from what the plan would choose. Such settings are never refused."""

from dataclasses import replace

from isoflop.optim.config import OptimConfig
from isoflop.optim.table import rates
from isoflop.plan.settings import batch_tokens_for, with_rates
from isoflop.trainer import RunConfig
from isoflop.trainer.task import task_named

FAR = 10.0  # a factor either way: more than the rules' uncertainty, or a search around their values, would explain


def check_against_plan(config: RunConfig) -> list[str]:
    """One line for each learning rate, and for the batch, that is more than FAR times what the plan would choose for a
    run of this size, or less than 1 / FAR of it. The batch is checked for text only: its rule needs the number of
    tokens, which pairs do not fix in advance."""
    planned = with_rates(replace(config, optim=OptimConfig(name=config.optim.name))).optim
    chosen, default = rates(config.optim.entry), rates(OptimConfig(name=config.optim.name).entry)
    own = [name for name in chosen if default[name]]  # the others are 0 by default, which means optim.lr

    pairs = [(f"optim.{name}", chosen[name], rates(planned.entry)[name]) for name in own]
    if task_named(config.task).static_shapes:
        tokens = float(config.tokens_per_step)
        pairs.append(("the batch, in tokens,", tokens, batch_tokens_for(config.tokens)))

    return [
        f"note: {name} = {value:,.4g} is {times(value / usual)} the {usual:,.4g} that the plan would choose"
        for name, value, usual in pairs
        if not 1 / FAR <= value / usual <= FAR
    ]


def times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 1 else f"1/{1 / ratio:,.0f} of"
