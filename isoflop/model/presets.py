"""Models by name. A preset is a function whose keyword arguments override its fields.

Most are published shapes. Those in UNSIZED name blocks and options only: `--set model=portable` keeps the sizes,
so that a plan still chooses them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from isoflop.model.config import SIZES, ModelConfig, Spec


def gpt1(**overrides: Any) -> ModelConfig:
    """GPT-1 (Radford et al. 2018), 116,534,784 parameters.

    Post-norm LayerNorm and none at the end, learned positions, GELU by the tanh formula, biases everywhere, tied head,
    N(0, 0.02) everywhere, dropout 0.1. The paper has 40,000 merges; with 478 more tokens the vocabulary is 40,478.
    """
    config = ModelConfig(
        vocab_size=40_478,
        context=512,
        layers=12,
        d_model=768,
        heads=12,
        norm=Spec("layer"),
        position=Spec("learned"),
        attention=Spec("full"),
        feed_forward=Spec("mlp", activation="gelu_tanh"),
        wiring=Spec("post"),
        init=Spec("normal", std=0.02),
        final_norm=False,
        tied_head=True,
        dropout=0.1,
    )
    return replace(config, **overrides)


def gpt2(**overrides: Any) -> ModelConfig:
    """GPT-2 small (Radford et al. 2019), 124,439,808 parameters; the paper's 117M is wrong.

    Pre-norm LayerNorm, learned positions, GELU by the tanh formula, biases everywhere, tied head. Dropout is 0: the
    value in OpenAI's training was not published.
    """
    config = ModelConfig(
        vocab_size=50_257,
        context=1024,
        layers=12,
        d_model=768,
        heads=12,
        norm=Spec("layer"),
        position=Spec("learned"),
        attention=Spec("full"),
        feed_forward=Spec("mlp", activation="gelu_tanh"),
        wiring=Spec("pre"),
        init=Spec("gpt2"),
        tied_head=True,
    )
    return replace(config, **overrides)


def gpt3(**overrides: Any) -> ModelConfig:
    """GPT-3 (Brown et al. 2020, 2005.14165, tables 2.1 and D.1): GPT-2 with a context of 2048 and alternating dense and
    locally banded layers. Without overrides GPT-3 175B, 174,604,259,328 parameters.

    The width of the band was not published; ours is that of GPT-Neo, the open replication: 256. Table 2.1 prints 24
    heads of 128 for XL and a width of 5140 for 13B; the counts of table D.1 require 16 heads and 5120, as used here.
    """
    config = gpt2(
        context=2048,
        layers=96,
        d_model=12288,
        heads=96,
        attention=Spec("alternating", pattern=("full", Spec("banded", window=256))),
    )
    return replace(config, **overrides)


def chinchilla(**overrides: Any) -> ModelConfig:
    """Chinchilla (Hoffmann et al. 2022, 2203.15556, table 4) and, with other shapes, Gopher (Rae et al. 2021,
    2112.11446) and the 50 models of table A9.

    Pre-norm RMS norm, Transformer-XL's relative positions, tied head. Table A9 counts L (5 d H K + 2 d F) + V d
    parameters; the fifth matrix is that of the positions. That is exactly the `matmul` count of this model:
    70,055,362,560 for Chinchilla 70B and 279,697,162,240 for Gopher. The totals also include the gains of the norms and
    the u and v of the positions: 70,057,992,192 and 279,702,421,504. The activation, biases (none here) and
    initialisation were not published: they are our choice.
    """
    config = ModelConfig(
        vocab_size=32_000,
        context=2048,
        layers=80,
        d_model=8192,
        heads=64,
        norm=Spec("rms"),
        position=Spec("relative"),
        attention=Spec("full", bias=False),
        feed_forward=Spec("mlp", activation="gelu", bias=False),
        wiring=Spec("pre"),
        init=Spec("gpt2"),
        tied_head=True,
    )
    return replace(config, **overrides)


def llama(d_ff: int = 11_008, kv_heads: int = 0, **overrides: Any) -> ModelConfig:
    """LLaMA (Touvron et al. 2023, 2302.13971, table 2) and similar models. Without overrides LLaMA 7B, 6,738,415,616
    parameters.

    Pre-norm RMS norm, rotary positions, SwiGLU, no biases, an untied head. Rotary is half-split as in Hugging Face's
    files (Meta's are interleaved). N(0, 0.02) is Hugging Face's; Meta's initialisation was not published.
    """
    config = ModelConfig(
        vocab_size=32_000,
        context=2048,
        layers=32,
        d_model=4096,
        heads=32,
        norm=Spec("rms", eps=1e-6),
        position=Spec("rotary"),
        attention=Spec("full", kv_heads=kv_heads, bias=False),
        feed_forward=Spec("gated", activation="silu", d_ff=d_ff),
        wiring=Spec("pre"),
        init=Spec("normal", std=0.02),
    )
    return replace(config, **overrides)


def smollm2(**overrides: Any) -> ModelConfig:
    """SmolLM2-135M (Allal et al. 2025, 2502.02737), 134,515,008 parameters, from its config.json."""
    shape: dict[str, Any] = {
        "vocab_size": 49_152,
        "context": 8192,
        "layers": 30,
        "d_model": 576,
        "heads": 9,
        "norm": Spec("rms", eps=1e-5),
        "position": Spec("rotary", base=100_000.0),
        "init": Spec("normal", std=1 / 24),
        "tied_head": True,
    }
    return llama(d_ff=1536, kv_heads=3, **{**shape, **overrides})


def stories_260k(**overrides: Any) -> ModelConfig:
    """The smallest model of llama2.c, 260,032 parameters: rotary interleaved, as in its file."""
    shape: dict[str, Any] = {
        "vocab_size": 512,
        "context": 512,
        "layers": 5,
        "d_model": 64,
        "heads": 8,
        "norm": Spec("rms", eps=1e-5),
        "position": Spec("rotary", interleaved=True),
        "tied_head": True,
    }
    return llama(d_ff=172, kv_heads=4, **{**shape, **overrides})


def modern(**overrides: Any) -> ModelConfig:
    """Our default: pre-norm, RMS norm, rotary, QK norm, squared ReLU, no biases, branches starting at zero; a plan adds
    value embeddings (plan/settings.py).

    Without `heads`, heads are 64 wide: narrower ones gave a higher loss (LAB.md) and take more time on every machine.
    """
    if "d_model" in overrides and "heads" not in overrides:
        overrides["heads"] = heads_for(overrides["d_model"])
    return ModelConfig(**overrides)


def portable(**overrides: Any) -> ModelConfig:
    """Blocks that every format of `isoflop export` holds in an architecture of its own, without modeling code: Hugging
    Face and GGUF as `apertus`, and so llama.cpp and other programs that read these.

    Every block and option is spelled out, so that this stays what it is when the defaults of ModelConfig change. Now
    they are the same. (tests/export/test_portable.py writes and reads it in every format.)
    """
    config = ModelConfig(
        norm=Spec("rms", gain=False),
        position=Spec("rotary"),
        attention=Spec("full", qk_norm=True, qk_gain=False, bias=False),
        feed_forward=Spec("mlp", activation="relu2", bias=False),
        wiring=Spec("pre"),
        init=Spec("modern"),
        embedding_norm=False,
        embedding_shortcut=False,
        value_embedding=0,
        value_gate=True,
        final_norm=True,
        tied_head=False,
        logit_cap=0.0,
        shortcut_residual=(1.0, 1.0),
        shortcut_embedding=(0.0, 0.0),
        smear=False,
        backout=False,
        dropout=0.0,
    )
    return replace(config, **overrides)


def heads_for(d_model: int) -> int:
    """d_model / 64 heads, or the largest smaller number that divides d_model."""
    return next(h for h in range(max(1, d_model // 64), 0, -1) if d_model % h == 0)


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "gpt1": gpt1,
    "gpt2": gpt2,
    "gpt2-medium": partial(gpt2, layers=24, d_model=1024, heads=16),
    "gpt2-large": partial(gpt2, layers=36, d_model=1280, heads=20),
    "gpt2-xl": partial(gpt2, layers=48, d_model=1600, heads=25),
    "gpt3-small": partial(gpt3, layers=12, d_model=768, heads=12),
    "gpt3-medium": partial(gpt3, layers=24, d_model=1024, heads=16),
    "gpt3-large": partial(gpt3, layers=24, d_model=1536, heads=16),
    "gpt3-xl": partial(gpt3, layers=24, d_model=2048, heads=16),
    "gpt3-2.7b": partial(gpt3, layers=32, d_model=2560, heads=32),
    "gpt3-6.7b": partial(gpt3, layers=32, d_model=4096, heads=32),
    "gpt3-13b": partial(gpt3, layers=40, d_model=5120, heads=40),
    "gpt3-175b": gpt3,
    "gopher-280b": partial(chinchilla, d_model=16384, heads=128),
    "chinchilla-70b": chinchilla,
    "llama-7b": llama,
    "llama-13b": partial(llama, layers=40, d_model=5120, heads=40, d_ff=13_824),
    "llama-33b": partial(llama, layers=60, d_model=6656, heads=52, d_ff=17_920),
    "llama-65b": partial(llama, layers=80, d_model=8192, heads=64, d_ff=22_016),
    "smollm2-135m": smollm2,
    "stories-260k": stories_260k,
    "modern": modern,
    "portable": portable,
}
UNSIZED: dict[str, tuple[str, ...]] = {"portable": SIZES}  # preset -> the fields that it does not set
