"""Settings that a user gave and that have no effect, since another setting decides so: said before the run starts."""

from collections.abc import Callable, Sequence
from dataclasses import fields

from isoflop.model.build import MODELS
from isoflop.model.gpt import GPT
from isoflop.trainer import RunConfig

# The parts of a configuration whose fields are the options of an entry of a table, and those of their fields that are
# read with every entry.
TABLES: dict[str, tuple[str, ...]] = {
    "optim": ("name", "weight_decay", "weight_decay_factor", "weight_decay_course", "clip"),
    "schedule": ("name", "warmup"),
    "average": ("name", "every"),
}

# field -> what it needs, in words, and whether a configuration has that
Need = tuple[str, Callable[[RunConfig], bool]]
VALUES: Need = ("model.value_embedding above 0", lambda config: config.model.value_embedding > 0)
SHORTCUT: Need = ("model.embedding_shortcut = true", lambda config: config.model.embedding_shortcut)
HEAD: Need = ("model.tied_head = false", lambda config: not config.model.tied_head)
SUITES: Need = ("every.suite above 0", lambda config: config.every.suite > 0)
NEEDS: dict[str, Need] = {
    "average.every": ("average.name other than none", lambda config: config.average.entry.on),
    "batch.context_from": (
        "to be below model.context",
        lambda config: not config.batch.context_from or config.batch.context_from < config.model.context,
    ),
    "batch.document_mask": ("attention", lambda config: config.model.attention.name != "none"),
    "batch.ramp_from": (
        "to be below batch.sequences",
        lambda config: not config.batch.ramp_from or config.batch.ramp_from < config.batch.sequences,
    ),
    "batch.rates": ("batch.ramp_from above 0", lambda config: config.batch.ramp_from > 0),
    "model.encoder_layers": ("an encoder-decoder", lambda config: MODELS[config.task].build is not GPT),
    "model.shortcut_embedding": SHORTCUT,
    "model.shortcut_residual": SHORTCUT,
    "model.value_gate": VALUES,
    "optim.head_betas": HEAD,
    "optim.head_lr": HEAD,
    "optim.momentum_from": ("optim.momentum_steps above 0", lambda config: config.optim.momentum_steps > 0),
    "optim.neuron_beta": ("optim.neurons other than none", lambda config: config.optim.neurons != "none"),
    "optim.value_lr": VALUES,
    "runtime.kernels": (
        "a CPU, and runtime.compile = false",
        lambda config: (
            config.runtime.kernels == "torch"
            or (config.runtime.device in ("cpu", "auto") and not config.runtime.compile)
        ),
    ),
    "suite.items": SUITES,
    "suite.names": SUITES,
    "suite.share": SUITES,
}


def unused(config: RunConfig, assignments: Sequence[str]) -> list[str]:
    """A line for each assignment whose field has no effect in `config`, which is complete: planned or given."""
    names = dict.fromkeys(text.partition("=")[0].strip() for text in assignments)
    return [f"note: {name} has no effect{why}" for name in names if (why := why_unused(config, name))]


def why_unused(config: RunConfig, name: str) -> str:
    """Why a dotted field has no effect; "" if it has one."""
    part, _, field = name.partition(".")
    if part in TABLES:
        chosen = getattr(config, part)
        read = (*TABLES[part], *(option.name for option in fields(chosen.entry)))
        if hasattr(chosen, field) and field not in read:
            return f" with {part}.name = {chosen.name}"
    if name in NEEDS and not NEEDS[name][1](config):
        return f": it needs {NEEDS[name][0]}"
    return ""
