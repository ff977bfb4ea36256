"""lm-eval (the extra `lm-eval`) on a run: its tasks, asked by our scoring and our engine.

import lm_eval
from isoflop.job import lm_eval_model

lm_eval.simple_evaluate(model=lm_eval_model("runs/books"), tasks=["hellaswag"])
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.evaluate.likelihood import Ids, Request, Window, likelihoods, read, windows_over
from isoflop.generate.engine import generate_all
from isoflop.model.gpt import GPT
from isoflop.runtime import Runtime

TOKENS = 256  # of an answer, where a task does not say


def adapter(model: GPT, tokenizer: Tokenizer, runtime: Runtime, name: str) -> Any:
    """A model as lm-eval's: an instance of its `LM`.

    Args:
        name: what lm-eval's caches know the tokenizer by.

    Raises:
        UserError: if lm-eval is not installed.
    """
    try:
        base: Any = import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}): pip install 'isoflop[lm-eval]'") from None

    class OfRun(base):
        """The three questions that lm-eval asks. `requests` have their arguments in `.args`."""

        tokenizer_name = name

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            asked = [Request(*request.args[:2]) for request in requests]
            return [(one.nats, one.greedy) for one in likelihoods(model, tokenizer, asked, runtime)]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [tokenizer.encode_batch([request.args[0]])[0] for request in requests]
            begins = np.array([tokenizer.start], dtype=np.int64)
            pieces = [rolling(np.concatenate([begins, ids]), model.config.context) for ids in texts]
            scored = iter(read(model, [window for one in pieces for window in one], runtime))
            return [sum(next(scored)[0] for _ in one) for one in pieces]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            texts: dict[int, str] = {}
            for how, numbers in alike([request.args[1] for request in requests]):
                prompts = [requests[number].args[0] for number in numbers]
                texts |= dict(zip(numbers, generate_all(model, tokenizer, prompts, **how), strict=True))
            return [texts[number] for number in range(len(requests))]

    return OfRun()


def rolling(ids: Ids, context: int) -> list[Window]:
    """Windows that predict each id but the first once, as lm-eval cuts a text: one after the other, the last one
    with as much before it as fits."""
    if len(ids) < 2:
        return []
    *windows, last = windows_over(ids, 1, context + 1, context)
    return [*windows, Window(ids[-(context + 1) :], last.scored)]


def alike(arguments: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[int]]]:
    """Requests with the same arguments of generation, in our words."""
    groups: list[tuple[dict[str, Any], list[int]]] = []
    for number, given in enumerate(arguments):
        until = given.get("until") or []
        sampled = bool(given.get("do_sample", False))
        how = {
            "tokens": int(given.get("max_gen_toks", given.get("max_new_tokens", TOKENS))),
            "stops": tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),  # as lm-eval
            "temperature": float(given.get("temperature", 1.0)) if sampled else 0.0,
            "top_k": int(given.get("top_k", 0)) if sampled else 0,
            "top_p": float(given.get("top_p", 1.0)) if sampled else 1.0,
        }
        for other, numbers in groups:
            if other == how:
                numbers.append(number)
                break
        else:
            groups.append((how, [number]))
    return groups
