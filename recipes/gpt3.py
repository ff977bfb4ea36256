"""GPT-3: Brown et al. 2020, 2005.14165, tables 2.1, 2.2 and D.1, appendix B.

    isoflop train --recipe recipes/gpt3.py:gpt3_small       # medium, large, xl, 2_7b, 6_7b, 13b, 175b: the same way

reads the five sources below `data/`; any others can be named instead (`isoflop train TEXT --recipe ...`).

Published: the shapes, rates and batches of table 2.1; 300e9 tokens each; Adam with betas 0.9 and 0.95, eps 1e-8,
decay 0.1; clipping at 1; the rate rises over 375e6 tokens, then falls by a cosine to a tenth over 260e9 and stays
there; the batch grows linearly from 32k tokens over the first 4 to 12e9, "depending on the model size"; the shares of
table 2.2. Documents are packed into sequences of 2048 without a mask between them.

Misprints: table 2.1 has 24 heads of 128 for XL (16 fit its count) and a width of 5140 for 13B (5120 fits). Table 2.2's
shares add up to 101 %, so that each is divided by 1.01 here; its epochs for WebText2 (2.9) and Wikipedia (3.4) are not
what its shares and sizes give (3.5 and 3.0). Figure 2.2 shows about 4,500 PF-days for 175B, table D.1 has 3,640.

Our choice: table 2.1 prints batches to one or two digits, 0.5M, 1M, 2M and 3.2M tokens; here they are 256, 512, 1024
and 1568 sequences, multiples of the 16 that the ramp starts from. The ramp takes 4e9 tokens at a batch of 0.5M, 6e9 at
1M, 8e9 at 2M and 12e9 at 3.2M. The band of the banded layers is 256 positions wide. The data was never published:
Books1, Books2 and WebText2 have no certain replacements.

Expected: 6 N D is 2.25e20 FLOPs (2.6 PF-days) for Small and 3.14e23 (3,640 PF-days) for 175B.
"""

from isoflop.data.config import DataConfig
from isoflop.model.presets import PRESETS
from isoflop.optim.config import OptimConfig, ScheduleConfig
from isoflop.trainer.config import BatchConfig, EveryConfig, RunConfig

TOKENS = 300e9
WARMUP_TOKENS = 375e6
COSINE_TOKENS = 260e9
FIRST_SEQUENCES = 16  # 32,768 tokens
SOURCES = (
    "common_crawl=data/common_crawl/:0.60",
    "webtext2=data/webtext2/:0.22",
    "books1=data/books1/:0.08",
    "books2=data/books2/:0.08",
    "wikipedia=data/wikipedia/:0.03",
)


def run(preset: str, lr: float, sequences: int, ramp_tokens: float) -> RunConfig:
    model = PRESETS[preset]()
    batch = BatchConfig(
        sequences=sequences,
        micro_sequences=1 if model.d_model > 2048 else 4,
        ramp_from=FIRST_SEQUENCES,
        ramp_sequences=round(ramp_tokens / model.context),
    )
    return RunConfig(
        model=model,
        data=DataConfig(sources=SOURCES, vocab_size=model.vocab_size),
        batch=batch,
        optim=OptimConfig("adamw", lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0),
        schedule=ScheduleConfig("cosine", warmup=WARMUP_TOKENS / TOKENS, floor=0.1, length=COSINE_TOKENS / TOKENS),
        every=EveryConfig(log=10, evaluate=500, sample=2000, checkpoint=500),
        steps=batch.steps_for(TOKENS / model.context),
    )


def gpt3_small() -> RunConfig:
    return run("gpt3-small", lr=6.0e-4, sequences=256, ramp_tokens=4e9)


def gpt3_medium() -> RunConfig:
    return run("gpt3-medium", lr=3.0e-4, sequences=256, ramp_tokens=4e9)


def gpt3_large() -> RunConfig:
    return run("gpt3-large", lr=2.5e-4, sequences=256, ramp_tokens=4e9)


def gpt3_xl() -> RunConfig:
    return run("gpt3-xl", lr=2.0e-4, sequences=512, ramp_tokens=6e9)


def gpt3_2_7b() -> RunConfig:
    return run("gpt3-2.7b", lr=1.6e-4, sequences=512, ramp_tokens=6e9)


def gpt3_6_7b() -> RunConfig:
    return run("gpt3-6.7b", lr=1.2e-4, sequences=1024, ramp_tokens=8e9)


def gpt3_13b() -> RunConfig:
    return run("gpt3-13b", lr=1.0e-4, sequences=1024, ramp_tokens=8e9)


def gpt3_175b() -> RunConfig:
    return run("gpt3-175b", lr=0.6e-4, sequences=1568, ramp_tokens=12e9)
