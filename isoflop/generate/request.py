"""Request: the settings of one generation."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """How to generate from a prompt. A task refuses settings that its model cannot use (trainer/task.py).

    Attributes:
        tokens: the most new tokens.
        temperature, top_k, top_p, seed, min_p, repetition_penalty, stops: see generate/engine.py; temperature None: the
            task's default.
        beam: hypotheses of a beam search; 1 is greedy.
        dtype: "bfloat16" rounds the weights of matrix products, which makes a large model faster.
        with_prompt: the text returned and shown begins with the prompt, if the model continues it.
        on_text: called with each piece of text as soon as it is complete.
    """

    tokens: int = 200
    temperature: float | None = None
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0
    beam: int = 1
    dtype: str = "float32"
    with_prompt: bool = False
    on_text: Callable[[str], None] | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stops: tuple[str, ...] = ()

    def show(self, text: str) -> None:
        if self.on_text is not None:
            self.on_text(text)
