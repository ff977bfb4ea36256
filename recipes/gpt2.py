"""GPT-2: Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.

    isoflop train WEBTEXT --recipe recipes/gpt2.py:gpt2                   # or gpt2_medium, gpt2_large, gpt2_xl
    isoflop train WEBTEXT --recipe recipes/gpt2.py:gpt2 --set data.tokenizer=vocab.bpe      # with OpenAI's own merges

Published, in the paper or in openai/gpt-2: the four models (1024 positions, 50,257 ids, pre-norm, residual projections
started smaller by sqrt(2 L)); batches of 512 sequences; WebText, 8 million documents in 40 GB. The paper's counts
(117M, 345M, 762M, 1542M) are wrong: these are 124M, 355M, 774M and 1558M.

Our choice, since the optimiser, the rates and the length were not published: those of GPT-3 at the same size (AdamW,
betas 0.9 and 0.95, decay 0.1, clipping at 1, 375M tokens of warm-up, cosine to a tenth), for 100e9 tokens, about ten
times WebText. WebText was not published either; OpenWebText is the usual stand-in.

Expected: OpenAI published nothing to compare with on WebText itself. 6 N D is 7.4e19 FLOPs for the smallest and
9.3e20 for XL.
"""

from isoflop.data.config import DataConfig
from isoflop.model.presets import PRESETS
from isoflop.optim.config import OptimConfig, ScheduleConfig
from isoflop.trainer.config import BatchConfig, EveryConfig, RunConfig

TOKENS = 100e9
WARMUP_TOKENS = 375e6


def run(preset: str, lr: float, micro_sequences: int) -> RunConfig:
    model, batch = PRESETS[preset](), BatchConfig(sequences=512, micro_sequences=micro_sequences)
    return RunConfig(
        model=model,
        data=DataConfig(vocab_size=model.vocab_size),
        batch=batch,
        optim=OptimConfig("adamw", lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0),
        schedule=ScheduleConfig("cosine", warmup=WARMUP_TOKENS / TOKENS, floor=0.1),
        every=EveryConfig(log=10, evaluate=500, sample=2000, checkpoint=500),
        steps=batch.steps_for(TOKENS / model.context),
    )


def gpt2() -> RunConfig:
    return run("gpt2", lr=6.0e-4, micro_sequences=16)


def gpt2_medium() -> RunConfig:
    return run("gpt2-medium", lr=3.0e-4, micro_sequences=8)


def gpt2_large() -> RunConfig:
    return run("gpt2-large", lr=2.5e-4, micro_sequences=4)


def gpt2_xl() -> RunConfig:
    return run("gpt2-xl", lr=2.0e-4, micro_sequences=2)
