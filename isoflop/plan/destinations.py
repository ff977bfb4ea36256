"""The formats that a model can be exported to, and what a portable one costs, determined before training."""

from dataclasses import replace

from isoflop.export import FORMATS, Outlook, outlook
from isoflop.model.build import MODELS
from isoflop.model.config import SIZES, ModelConfig
from isoflop.model.gpt import GPT
from isoflop.model.presets import portable
from isoflop.plan.portability import cost_of_portable
from isoflop.records.plan import Exports
from isoflop.trainer import RunConfig

PORTABLE = "--set model=portable"
NOT_MEASURED = "what that costs in loss was not measured"


def destinations(config: RunConfig, tokenizer: str = "") -> Exports:
    """The formats that a run can be exported to, and the settings that would make the others possible.

    Args:
        tokenizer: the text of its tokenizer.json; "" if it is not known.
    """
    trained = MODELS[config.task]
    if trained.build is not GPT:
        return Exports(words="none", reason=f"no format of `isoflop export` has an {trained.kind}")

    formats = outlook(config.model, tokenizer)
    held = {name: outcome for name, outcome in formats.items() if outcome.possible}
    exports = Exports(
        formats={name: outcome.architecture for name, outcome in held.items()},
        own_code=tuple(name for name, outcome in held.items() if outcome.own_code),
        words=", ".join(title(name, outcome) for name, outcome in held.items()) or "none",
    )
    if not exports.own_code:
        return exports.updated(reason="; ".join(ways(formats)) or "by `isoflop export`")

    advised = replace(portable(), **{name: getattr(config.model, name) for name in SIZES})
    return with_way_out(exports, config.model, formats, outlook(advised, tokenizer))


def with_way_out(
    exports: Exports, model: ModelConfig, formats: dict[str, Outlook], portable_ones: dict[str, Outlook]
) -> Exports:
    """The exports of a model that needs modeling code of its own, with the way to a portable one and its cost."""
    code = "transformers runs it with trust_remote_code=True; not for GGUF, llama.cpp, vLLM"
    if any(portable_ones[name].own_code for name in exports.own_code):  # its sizes are in the way, too
        return exports.updated(reason="; ".join([code, *ways(formats)]))

    cost = cost_of_portable(model)
    reason = f"{code}: {PORTABLE} makes it fit these, {cost.in_words() if cost else NOT_MEASURED}"
    tokenizers = [
        f"{FORMATS[name].title}: {one.tokenizer}"
        for name, one in portable_ones.items()
        if one.tokenizer and not one.sets  # only its tokenizer is in the way of this format
    ]
    exports = exports.updated(reason="; ".join([reason, *tokenizers]))
    return exports.updated(low=cost.low, high=cost.high, source=cost.source) if cost else exports


def title(name: str, outcome: Outlook) -> str:
    return f"{FORMATS[name].title} {'with its own code' if outcome.own_code else f'({outcome.architecture})'}"


def ways(formats: dict[str, Outlook]) -> list[str]:
    """What is in the way of each format that cannot hold the model."""
    return [
        f"{FORMATS[name].title}: {one.tokenizer}"
        if one.tokenizer
        else f"{FORMATS[name].title} with --set {' '.join(one.sets)}"
        for name, one in formats.items()
        if not one.possible
    ]
