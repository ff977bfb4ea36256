"""GPT-1: Radford et al. 2018, "Improving language understanding by generative pre-training", section 4.1.

    isoflop train BOOKS --recipe recipes/gpt1.py:gpt1
    isoflop train BOOKS --recipe recipes/gpt1.py:gpt1 --set steps=3000 --dry-run        # shorter, and only the plan

Published, in the paper or in openai/finetune-transformer-lm: the model (12 x 768, post-norm, 512 positions, dropout
0.1, N(0, 0.02)); batches of 64 sequences of 512 tokens; Adam with a decoupled L2 of 0.01 on all that is no bias or
gain; 2.5e-4 after 2,000 updates of linear warm-up, then a cosine to 0; 100 epochs of BooksCorpus, over 7,000 books. The
betas (0.9, 0.999), eps 1e-8 and the clipping at a norm of 1 are those of the fine-tuning code.

Our choice: BooksCorpus is no longer distributed, so BOOKS is any text. An epoch is taken as 1e9 tokens (800M words by
BERT's paper, at 1.25 tokens per word); set `steps` for another. The tokenizer is byte-level with 40,478 ids, where
theirs had 40,000 merges over cleaned words. The cosine runs from the first step, as in their code.

Expected: the paper's model has a perplexity of 18.4 per token on its own books. An epoch costs 7.0e17 FLOPs (6 N D).
"""

from isoflop.data.config import DataConfig
from isoflop.model.presets import gpt1 as model
from isoflop.optim.config import OptimConfig, ScheduleConfig
from isoflop.trainer.config import BatchConfig, EveryConfig, RunConfig

EPOCHS = 100
TOKENS_AN_EPOCH = 1e9  # our estimate
WARMUP_STEPS = 2_000


def gpt1() -> RunConfig:
    config, batch = model(), BatchConfig(sequences=64, micro_sequences=16)
    steps = batch.steps_for(EPOCHS * TOKENS_AN_EPOCH / config.context)
    return RunConfig(
        model=config,
        data=DataConfig(vocab_size=config.vocab_size),
        batch=batch,
        optim=OptimConfig("adamw", lr=2.5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip=1.0),
        schedule=ScheduleConfig("cosine", warmup=WARMUP_STEPS / steps, floor=0.0, cosine_from="start"),
        every=EveryConfig(log=10, evaluate=1000, sample=5000, checkpoint=1000),
        steps=steps,
    )
