"""The ladder of shapes that the planner chooses from, and the rules that go with a size."""

import math

# (layers, d_model), each rung about 1.3 to 1.8 times the parameters of the one before it. Width leads depth as in the
# GPT-2 and GPT-3 families; the loss is flat over a wide range of aspect ratios (Kaplan et al. 2020, figure 5).
LADDER: tuple[tuple[int, int], ...] = (
    (1, 32),
    (2, 32),
    (2, 48),
    (2, 64),
    (3, 64),
    (3, 96),
    (4, 96),
    (4, 128),
    (5, 128),
    (5, 160),
    (6, 160),
    (6, 192),
    (7, 224),
    (8, 256),
    (8, 320),
    (8, 384),
    (10, 448),
    (10, 512),
    (12, 576),
    (12, 640),
    (12, 768),
    (16, 896),
    (16, 1024),
    (20, 1152),
    (20, 1280),
    (24, 1536),
    (24, 1792),
    (24, 2048),
    (32, 2560),
    (32, 3200),
    (32, 4096),
    (40, 5120),
    (64, 6656),
    (80, 8192),
)


def context_for(flops: float) -> int:
    """Tokens of context: what GPT-2 and GPT-3 had at their compute, and less below, where long contexts cost sooner
    than they pay."""
    return 256 if flops < 3e15 else 512 if flops < 1e18 else 1024 if flops < 1e21 else 2048


def vocabulary_for(flops: float, corpus_bytes: float) -> int:
    """Ids of a tokenizer trained for this run, a power of two from 512 to 65,536.

    Grows as the quarter power of compute, from 2,048 at 1e13 FLOPs (measured at 7e11 and 4e12, see LAB.md; Tao et al.
    2024: vocabulary parameters V d go as the 0.83rd power of the others; with N ~ C^0.5 and d ~ N^0.33 that leaves V ~
    C^0.25); and no more than one id for 256 bytes of text, so that each is seen.
    """
    wanted = math.log2(2048) + 0.25 * math.log2(max(flops, 1.0) / 1e13)
    possible = math.log2(max(corpus_bytes, 1.0) / 256)
    return int(2 ** min(16, max(9, round(min(wanted, possible)))))


def batch_tokens_for(tokens: float) -> float:
    """Tokens in one optimiser step: 0.573 D^0.571 (Step Law, Li et al. 2025), between 2,048 and 4 M.

    Fitted by its authors at 1e9 tokens and more; far below that it is a starting point.
    """
    return float(min(max(0.573 * tokens**0.571, 2048.0), 4e6))
