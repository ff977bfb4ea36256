"""Models by name. A preset is a function: what it is not told, it knows."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from isoflop.model.config import ModelConfig, Spec


def gpt2(**overrides: Any) -> ModelConfig:
    """GPT-2 small (Radford et al. 2019), 124,439,808 parameters; the paper's 117M is wrong.

    Pre-norm LayerNorm, learned positions, GELU by the tanh formula, biases everywhere, tied head. Dropout is 0: what
    OpenAI trained with was not published.
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


def modern(**overrides: Any) -> ModelConfig:
    """Our default: pre-norm, RMS norm, rotary, QK norm, squared ReLU, no biases, branches starting at zero.

    Without `heads`, heads are 64 wide: narrower ones attend less sharply and cost more on every machine.
    """
    if "d_model" in overrides and "heads" not in overrides:
        overrides["heads"] = heads_for(overrides["d_model"])
    return ModelConfig(**overrides)


def heads_for(d_model: int) -> int:
    """As many heads as the width has 64s, or the next fewer that divide it."""
    return next(h for h in range(max(1, d_model // 64), 0, -1) if d_model % h == 0)


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "gpt2": gpt2,
    "gpt2-medium": partial(gpt2, layers=24, d_model=1024, heads=16),
    "gpt2-large": partial(gpt2, layers=36, d_model=1280, heads=20),
    "gpt2-xl": partial(gpt2, layers=48, d_model=1600, heads=25),
    "modern": modern,
}
