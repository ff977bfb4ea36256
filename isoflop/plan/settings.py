"""The rules that depend on size: value embeddings, context, vocabulary, batch, learning rates, and how often a run
evaluates and saves. The shapes themselves come from the task (Workload.ladder)."""

import math
from dataclasses import replace

from isoflop.model.build import MODELS
from isoflop.model.gpt import GPT
from isoflop.model.registry import ATTENTIONS, entries_with, names_by_depth
from isoflop.plan.asked import NOTHING, Asked
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Workload

EMBEDDING_BETAS, HEAD_BETAS = (0.8, 0.995), (0.8, 0.96)  # nanochat's
# The factor on weight decay: 1 up to FEW_EPOCHS, then DECAY_PER_EPOCH more with each, at most MOST_DECAY
FEW_EPOCHS, DECAY_PER_EPOCH, MOST_DECAY = 6.0, 0.35, 5.0
EVERY_LAYER = 256  # the widest model with a value embedding in every layer
RATES = ("lr", "matrix_lr", "head_lr", "embedding_lr", "value_lr")
ON_A_GPU = 8  # a batch is a multiple of it on a GPU, which may have to split it into several passes


def value_embedding_for(d_model: int) -> int:
    """ModelConfig.value_embedding of a GPT: 1, every layer, at the widths where that was measured (docs/recipe.md);
    beyond these 2, every second layer, as in nanochat: their tables then have half as many parameters."""
    return 1 if d_model <= EVERY_LAYER else 2


def with_recipe(config: RunConfig, asked: Asked = NOTHING, model: bool = True) -> RunConfig:
    """What the default recipe has in addition to RunConfig(): value embeddings for the model's width, if its attention
    has values that they can be added to; and with Muon, betas by parameter group, unless `optim.betas` is set.

    Args:
        model: whether blocks may change; not those of a model that training starts from.
    """
    is_gpt = MODELS[config.task].build is GPT
    attentions = names_by_depth(ATTENTIONS, config.model.attention, "model.attention")
    possible = is_gpt and set(attentions) <= set(entries_with(ATTENTIONS, "takes_values"))
    every = value_embedding_for(config.model.d_model) if possible else 0
    config = asked.choose(config, "model", value_embedding=every) if model else config
    if is_gpt and config.optim.name == "muon" and not asked.names("optim.betas"):
        config = asked.choose(config, "optim", embedding_betas=EMBEDDING_BETAS, head_betas=HEAD_BETAS)
    return config


def context_for(flops: float) -> int:
    """Tokens of context: what GPT-2 and GPT-3 had at their compute, and less for less compute, where a long context
    costs more than it gains."""
    return 256 if flops < 3e15 else 512 if flops < 1e18 else 1024 if flops < 1e21 else 2048


def vocabulary_for(flops: float, corpus_bytes: float) -> int:
    """The number of ids of a tokenizer trained for this run, a power of two from 512 to 65,536.

    Grows as the quarter power of compute, from 4,500 at 1e13 FLOPs: the best was about 3,200 at 1.4e12 and 5,500 at
    1.1e13 (docs/recipe.md); at 1.9e13 8,192 are as good as 4,096 on books and worse on code (LAB.md). Tao et al. 2024:
    vocabulary parameters V d scale as the 0.83rd power of the others; with N ~ C^0.5 and d ~ N^0.33 that gives V ~
    C^0.25. At most one id per 256 bytes of text, so that each occurs.
    """
    wanted = math.log2(4500) + 0.25 * math.log2(max(flops, 1.0) / 1e13)
    possible = math.log2(max(corpus_bytes, 1.0) / 256)
    return int(2 ** min(16, max(9, round(min(wanted, possible)))))


def bytes_per_token_for(vocabulary: int) -> float:
    """Bytes of English and code per token, about: they grow with the logarithm of the vocabulary (2.4 with 512 ids, 3.1
    with 2,048, 4.0 with 16,384)."""
    return max(1.5, 0.33 * math.log2(vocabulary) - 0.6)


def batch_tokens_for(tokens: float) -> float:
    """Tokens in one optimiser step: 0.573 D^0.571 (Step Law, Li et al. 2025), between 2,048 and 4 M.

    Its authors fitted it at 1e9 tokens and more; far below that it is a starting point.
    """
    return float(min(max(0.573 * tokens**0.571, 2048.0), 4e6))


def with_batch(config: RunConfig, tokens: float, workload: Workload, asked: Asked = NOTHING) -> RunConfig:
    """The batch for a run of `tokens` tokens, in whole sequences, in one pass."""
    on_gpu = config.runtime.device.startswith("cuda")
    multiple = max(workload.sequences_multiple, ON_A_GPU if on_gpu else 1)
    wanted = batch_tokens_for(tokens) / workload.tokens_per_sequence(config)
    sequences = max(workload.min_sequences, multiple * round(wanted / multiple))
    if ramp_from := config.batch.ramp_from:  # which has to divide it
        sequences = ramp_from * max(1, round(sequences / ramp_from))
    config = asked.choose(config, "batch", sequences=sequences, micro_sequences=0)
    if config.batch.grows:  # about, so that steps are timed as they will be
        steps = config.batch.steps_for(tokens / workload.tokens_per_sequence(config))
        config = asked.choose(config, "", steps=max(1, steps))
    return config


def with_rates(config: RunConfig, asked: Asked = NOTHING) -> RunConfig:
    """The peak learning rates for a model's size, by the rule of its optimiser (optim/table.py), scaled from those of
    width 128; see LAB.md for the runs behind them."""
    return asked.choose(config, "optim", **config.optim.entry.at_width(config.model.d_model, config.model.tied_head))


def with_decay(config: RunConfig, epochs: float, asked: Asked = NOTHING) -> RunConfig:
    """The factor on weight decay for a text that is read `epochs` times. With the usual weight decay a small model
    learns such a text by heart: its held-out loss rises. At 6e12 FLOPs three times the decay gained 6 % of the loss at
    11 epochs and five times 5 %; five times gained 17 % at 22 epochs. At 2 to 6 epochs more decay gained nothing or
    lost up to 6 %, as did 20 times at 11 epochs (LAB.md). Kim et al. 2025 (2509.14786) found about 30 times the usual
    one best, for larger models. A weight decay that the user has set stays as it is."""
    if asked.names("optim.weight_decay"):
        return config
    factor = min(MOST_DECAY, 1.0 + DECAY_PER_EPOCH * max(0.0, epochs - FEW_EPOCHS))
    return asked.choose(config, "optim", weight_decay_factor=round(factor, 2))


def scaled(config: RunConfig, factor: float) -> RunConfig:
    """The same with all learning rates times a factor."""
    rates = {name: getattr(config.optim, name) * factor for name in RATES if getattr(config.optim, name)}
    return replace(config, optim=replace(config.optim, **rates))


def with_length(config: RunConfig, steps: int, seconds: float, asked: Asked = NOTHING) -> RunConfig:
    """The length of a run, and about 12 held-out measurements, 3 samples and 10 checkpoints, which together take less
    than 2 % of its time (bench/overhead.py). All measurements together read about 1/80 of the training tokens, each at
    least 8,192 tokens."""
    planned = replace(config, steps=steps)
    every = {
        "evaluate": max(1, math.ceil(steps / 12)),
        "sample": max(1, math.ceil(steps / 3)),
        "checkpoint": max(1, math.ceil(steps / 10)),
    }
    measured = min(max(planned.tokens // 1000, 8192), 2**20)
    config = asked.choose(config, "every", **every)
    return asked.choose(config, "", steps=steps, seconds=seconds, evaluate_tokens=measured)
