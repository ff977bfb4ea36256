"""The rules that go with a size: context, vocabulary and batch. The shapes are the task's (Workload.ladder)."""

import math


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
