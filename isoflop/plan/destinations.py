"""The formats that a model can be exported to, determined before training."""

from isoflop.export import outlook
from isoflop.model.build import MODELS
from isoflop.model.gpt import GPT
from isoflop.trainer import RunConfig


def destinations(config: RunConfig, tokenizer: str = "") -> tuple[str, str]:
    """The formats that a run can be exported to, and the settings that would make the others possible.

    Args:
        tokenizer: the text of its tokenizer.json; "" if it is not known.
    """
    trained = MODELS[config.task]
    if trained.build is not GPT:
        return "none", f"no format of `isoflop export` has an {trained.kind}"
    formats = outlook(config.model, tokenizer)
    value = ", ".join(f"{name} ({outcome.architecture})" for name, outcome in formats.items() if outcome.possible)
    ways = [
        f"{name}: {outcome.tokenizer}" if outcome.tokenizer else f"{name} with --set {' '.join(outcome.sets)}"
        for name, outcome in formats.items()
        if not outcome.possible
    ]
    return value or "none", "; ".join(ways) or "by `isoflop export`"
