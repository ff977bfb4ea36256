"""What is asked of a model that writes: how long, drawn how, shown where."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """How a model is to answer a prompt. A task refuses what its model has no use for (trainer/task.py).

    Attributes:
        tokens: the most tokens to write.
        temperature, top_k, top_p, seed, min_p, repetition_penalty, stops: see generate/engine.py; temperature None: the
            model's usual one.
        beam: hypotheses that a search for the likeliest output keeps; 1 is greedy.
        dtype: bfloat16: the weights that are multiplied are rounded, and a large model writes faster.
        with_prompt: what is returned and shown begins with the prompt, where the model continues it.
        on_text: is given each piece of the text as soon as it is complete.
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
